"""Computes RoPE on JAX."""

from collections.abc import Callable
from typing import Any

from keras_rgemma.ops.rope.split import constant, rotate

__all__ = ["IMPLEMENTATIONS", "constant", "default_implementation"]


def default_implementation() -> str:
    return "split"


IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {"split": rotate}
