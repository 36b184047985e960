"""Computes RoPE on the two halves of the rotated features, for any backend."""

import numpy as np
from keras import ops

from keras_rgemma.backend import tensor_of
from keras_rgemma.types import Tensor


def constant(array: np.ndarray, x: Tensor) -> Tensor:
    """Converts an array to a tensor for use with x."""
    del x
    return tensor_of(array)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates features [0, R) of x [B, T, H, K]; cos and sin are float32 [B, T, 1, R / 2]."""
    half = cos.shape[-1]
    # TensorFlow's gradient of a split is faster than that of slices.
    first, second, others = ops.split(x, [half, 2 * half], axis=-1)
    first, second = ops.cast(first, "float32"), ops.cast(second, "float32")
    turned = ops.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    if 2 * half == x.shape[-1]:
        return ops.cast(turned, x.dtype)
    return ops.concatenate([ops.cast(turned, x.dtype), others], axis=-1)
