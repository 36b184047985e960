"""Multiplies rows by a matrix on TensorFlow."""

from collections.abc import Callable
from typing import Any

from keras_rgemma.ops.matmul.plain import multiply


def default_implementation() -> str:
    return "keras"


IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {"keras": multiply}
