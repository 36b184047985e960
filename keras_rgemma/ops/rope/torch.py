"""Computes RoPE on PyTorch in few operations: their number bounds decoding on a CPU."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from keras import ops

from keras_rgemma.keras_internals.torch import normal_tensors

_kept = {}  # tensors by the ids of arrays and by devices


def default_implementation() -> str:
    return "split"


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates features [0, R) of x [B, T, H, K]; cos and sin are float32 [B, T, 1, R / 2]."""
    half = cos.shape[-1]
    first, second = x[..., :half].float(), x[..., half : 2 * half].float()
    turned = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat([part.to(x.dtype) for part in turned] + [x[..., 2 * half :]], dim=-1)


def constant(array: np.ndarray, x: torch.Tensor) -> torch.Tensor:
    """Converts an array that is never changed or dropped to a tensor on the device of x."""
    if x.device.type == "cpu" or torch.compiler.is_compiling():
        return ops.convert_to_tensor(array)
    key = id(array), x.device
    if key not in _kept:  # a GPU would wait for each copy
        with normal_tensors():
            _kept[key] = ops.convert_to_tensor(array)
    return _kept[key]


IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {"split": rotate}
