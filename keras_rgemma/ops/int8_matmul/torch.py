"""Multiplies int8 matrices on PyTorch."""

from collections.abc import Callable
from typing import Any

import keras
import torch
from keras import ops

from keras_rgemma.keras_internals.torch import default_device, int_mm


def default_implementation() -> str:
    # Other devices take only some shapes, which Keras knows.
    return "int_mm" if default_device() == "cpu" else "keras"


def _keras(rows: torch.Tensor, kernel: torch.Tensor, transpose_kernel: bool) -> torch.Tensor:
    """Lets Keras multiply: in int32 on a CPU, in int8 or float32 on a GPU."""
    return ops.matmul(rows, kernel.mT if transpose_kernel else kernel)


def _int_mm(rows: torch.Tensor, kernel: torch.Tensor, transpose_kernel: bool) -> torch.Tensor:
    """Multiplies in int8; small blocks in float32, which is exact for them."""
    kernel = kernel.mT if transpose_kernel else kernel
    return int_mm(rows, kernel) if kernel.ndim == 2 else rows.float() @ kernel.float()


def lay_out(variable: keras.Variable) -> None:
    """Stores a matrix column by column, which a product with one row then reads in order.

    The tensor stays the same object with the same shape and numbers.
    """
    kernel = variable.value
    if kernel.device.type == "cpu" and kernel.is_contiguous():
        with torch.inference_mode(False), torch.no_grad():
            kernel.data = kernel.mT.contiguous().mT


IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {"int_mm": _int_mm, "keras": _keras}
