"""Registers classes as pytrees of JAX."""

import jax


def register_pytree(cls):
    """Registers a class that has `tree_flatten` and `tree_unflatten` as a pytree of JAX."""
    jax.tree_util.register_pytree_node_class(cls)
