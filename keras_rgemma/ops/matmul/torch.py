"""Multiplies rows by a matrix on PyTorch."""

from torch.nn import functional

from keras_rgemma.ops.matmul.plain import multiply


def default_implementation():
    return "linear"


def _linear(x, kernel, bias, transpose_kernel):
    """Multiplies and adds in one operation, without a pass over memory for the bias."""
    if x.dtype != kernel.dtype or (bias is not None and bias.dtype != x.dtype):
        return multiply(x, kernel, bias, transpose_kernel)  # promotes
    return functional.linear(x, kernel if transpose_kernel else kernel.mT, bias)


IMPLEMENTATIONS = {"linear": _linear, "keras": multiply}
