"""Cuts a range out of the tokens of each row."""

import keras
from keras import ops

from keras_rgemma.types import Tensor


def time_range(x: Tensor, start: int | Tensor, length: int | Tensor) -> Tensor:
    """Returns the tokens `start` to `start + length` of x [B, T, ...], all of them in the row."""
    if keras.config.backend() != "tensorflow":
        return x[:, start : start + length]
    # The gradient of an indexed range takes several times as long there.
    rest = len(x.shape) - 2
    return ops.slice(x, (0, start, *[0] * rest), (ops.shape(x)[0], length, *x.shape[2:]))
