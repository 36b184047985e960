"""Bounds logits on JAX, which fuses the operations where it compiles."""

from collections.abc import Callable
from typing import Any

from keras_rgemma.ops.soft_cap.plain import soft_cap


def default_implementation() -> str:
    return "keras"


IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {"keras": soft_cap}
