"""Runs a function of rows on an array of any number of axes."""

from keras import ops


def on_rows(x, kernel, function):
    """Applies a function of rows, [M, I] or [H, M, I] as the kernel has blocks, to [..., I]."""
    blocks = kernel.shape[:-2]
    y = function(ops.reshape(x, (*blocks, -1, x.shape[-1])))
    return ops.reshape(y, (*ops.shape(x)[:-1], y.shape[-1]))
