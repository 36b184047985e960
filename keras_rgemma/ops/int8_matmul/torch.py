"""Multiplies int8 matrices on PyTorch."""

import torch
from keras import ops

from keras_rgemma.keras_internals.torch import int_mm


def default_implementation():
    # CUDA takes only some shapes, which Keras knows.
    return "keras" if torch.cuda.is_available() else "int_mm"


def _keras(rows, kernel, transpose_kernel):
    """Lets Keras multiply: in int32 on a CPU, in int8 or float32 on a GPU."""
    return ops.matmul(rows, kernel.mT if transpose_kernel else kernel)


def _int_mm(rows, kernel, transpose_kernel):
    """Multiplies in int8; small blocks in float32, which is exact for them."""
    kernel = kernel.mT if transpose_kernel else kernel
    return int_mm(rows, kernel) if kernel.ndim == 2 else rows.float() @ kernel.float()


IMPLEMENTATIONS = {"int_mm": _int_mm, "keras": _keras}
