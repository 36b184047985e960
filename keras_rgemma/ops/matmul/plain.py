"""Multiplies rows by a matrix with Keras' product."""

from keras import ops

from keras_rgemma.types import Tensor


def multiply(x: Tensor, kernel: Tensor, bias: Tensor | None, transpose_kernel: bool) -> Tensor:
    """Computes what the package's function does."""
    y = ops.matmul(x, ops.transpose(kernel) if transpose_kernel else kernel)
    return y if bias is None else y + bias
