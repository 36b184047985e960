"""Registers classes as nodes of `keras.tree`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras.src.tree.tree_api import register_tree_node_class


def register_pytree(cls: type[Any]) -> None:
    """Registers a class with `tree_flatten` and `tree_unflatten` as a node of `keras.tree`."""

    def unflatten(children: Sequence[Any], aux: Any) -> Any:
        return cls.tree_unflatten(aux, children)

    # Keras calls these two on PyTorch.
    cls.torchtree_flatten = cls.tree_flatten
    cls.torchtree_unflatten = unflatten
    register_tree_node_class(cls)
