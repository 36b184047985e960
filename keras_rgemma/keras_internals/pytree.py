"""Registers classes as nodes of `keras.tree`."""

from keras.src.tree.tree_api import register_tree_node_class


def register_pytree(cls):
    """Registers a class with `tree_flatten` and `tree_unflatten` as a node of `keras.tree`."""

    def unflatten(children, aux):
        return cls.tree_unflatten(aux, children)

    # Keras calls these two on PyTorch.
    cls.torchtree_flatten = cls.tree_flatten
    cls.torchtree_unflatten = unflatten
    register_tree_node_class(cls)
