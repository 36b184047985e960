"""Multiplies rows by a matrix with Keras' product."""

from keras import ops


def multiply(x, kernel, bias, transpose_kernel):
    """Computes what the package's function does."""
    y = ops.matmul(x, ops.transpose(kernel) if transpose_kernel else kernel)
    return y if bias is None else y + bias
