"""Computes the linear recurrence on PyTorch."""

from collections.abc import Callable
from typing import Any

from keras_rgemma.keras_internals.torch import default_device
from keras_rgemma.ops.linear_recurrence.torch.chunked import linear_recurrence as chunked
from keras_rgemma.ops.linear_recurrence.torch.triton_operators import linear_recurrence as triton
from keras_rgemma.ops.linear_recurrence.torch.triton_operators import problem_with

IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {"chunked": chunked, "triton": triton}


def default_implementation() -> str:
    # On the CPU Triton has an interpreter alone, for tests.
    device = default_device()
    return "triton" if device == "cuda" and problem_with(device) is None else "chunked"
