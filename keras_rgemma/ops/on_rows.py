"""Runs a function of rows on an array of any number of axes."""

from collections.abc import Callable

from keras import ops

from keras_rgemma.types import Tensor


def on_rows(x: Tensor, kernel: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Applies a function of rows, [M, I] or [H, M, I] as the kernel has blocks, to [..., I]."""
    blocks = kernel.shape[:-2]
    y = function(ops.reshape(x, (*blocks, -1, x.shape[-1])))
    return ops.reshape(y, (*ops.shape(x)[:-1], y.shape[-1]))
