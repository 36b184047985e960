"""Gathers tokens of each row by their places in the row."""

import keras
from keras import ops

from keras_rgemma.types import Tensor


def tokens_at(x: Tensor, index_BN: Tensor) -> Tensor:
    """Returns the tokens of x [B, T, ...] at places [B, N], all of them in the row: [B, N, ...]."""
    if keras.config.backend() != "tensorflow":
        index = index_BN[(..., *[None] * (len(x.shape) - 2))]
        return ops.take_along_axis(x, index, axis=1)
    # Keras' indices are int64 there, and TensorFlow logs an error when a CPU moves them in a graph.
    batch, length = ops.shape(x)[:2]
    first_B1 = length * ops.arange(batch, dtype="int32")[:, None]
    return ops.take(ops.reshape(x, (-1, *x.shape[2:])), first_B1 + index_BN, axis=0)
