"""Multiplies rows by a matrix on PyTorch.

PyTorch gives the product of a few rows on a CPU to MKL, which may run it in one thread, or in half
precision to oneDNN, which copies the matrix. Either reads at half of the speed of memory or less
(benchmarks/products_torch.py).
"""

import functools

import torch
from torch.nn import functional

from keras_rgemma.ops.matmul.plain import multiply

# Parts of a matrix that are multiplied side by side. It does not follow the number of threads,
# which may change from token to token: the order of sums, and with it the results, shall not.
PARTS = min(16, torch.get_num_threads())
MOST_ROWS = 32  # for more the threads have enough work
SMALLEST = 1 << 16  # elements of a matrix; to divide a smaller one takes longer than it saves
HAS_FBGEMM = "fbgemm" in torch.backends.quantized.supported_engines


def default_implementation():
    return "parts"


def _linear(x, kernel, bias, transpose_kernel):
    """Multiplies and adds in one operation, without a pass over memory for the bias."""
    if x.dtype != kernel.dtype or (bias is not None and bias.dtype != x.dtype):
        return multiply(x, kernel, bias, transpose_kernel)  # promotes
    return functional.linear(x, kernel if transpose_kernel else kernel.mT, bias)


def _by_parts(x, kernel, bias, transpose_kernel):
    """Multiplies a few rows by parts of a matrix that lies on a CPU, without gradients."""
    rows = x.shape[:-1].numel()
    if (
        kernel.numel() < SMALLEST
        or not 0 < rows <= MOST_ROWS
        or torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or x.device.type != "cpu"
        or x.dtype != kernel.dtype
    ):
        return _linear(x, kernel, bias, transpose_kernel)
    x_BI = x.reshape(rows, -1)
    if rows == 1 and HAS_FBGEMM and not transpose_kernel and kernel.is_contiguous():
        y_BJ = _sum_of_rows(x_BI[0], kernel)[None]
    elif x.dtype != torch.float32:
        return _linear(x, kernel, bias, transpose_kernel)
    elif transpose_kernel:
        y_BJ = _product_by_outputs(x_BI, kernel)
    else:
        y_BJ = _product_by_inputs(x_BI, kernel)
    y = y_BJ.view(*x.shape[:-1], -1)
    return y if bias is None else y + bias


def _sum_of_rows(x_I, kernel_IJ):
    """Sums the rows of a matrix, weighted, as those of an embedding: in float32, by a vector."""
    indices, offsets = bags(len(x_I), len(x_I) // _parts(len(x_I)))
    y_PJ = torch.embedding_bag(
        kernel_IJ, indices, offsets, mode=0, per_sample_weights=x_I.contiguous()
    )[0]
    return y_PJ[0] if len(y_PJ) == 1 else y_PJ.sum(0)


def _product_by_inputs(x_BI, kernel_IJ):
    parts = _parts(x_BI.shape[1])
    x_PBI = x_BI.unflatten(1, (parts, -1)).transpose(0, 1)
    y_PBJ = torch.bmm(x_PBI, kernel_IJ.unflatten(0, (parts, -1)))
    return y_PBJ.sum(0)


def _product_by_outputs(x_BI, kernel_JI):
    parts = _parts(len(kernel_JI))
    x_PBI = x_BI.expand(parts, *x_BI.shape)
    y_PBJ = torch.bmm(x_PBI, kernel_JI.unflatten(0, (parts, -1)).mT)
    return y_PBJ.transpose(0, 1).flatten(1)


@functools.cache
def _parts(size):
    """Returns the largest number of equal parts of a dimension, at most `PARTS`."""
    return max(parts for parts in range(1, PARTS + 1) if size % parts == 0)


@functools.cache
def bags(rows, size):
    """Returns the indices of rows and the offsets of bags of `size` rows, for `embedding_bag`."""
    indices = torch.arange(rows, dtype=torch.int32, device="cpu")
    return indices, indices[::size].contiguous()


IMPLEMENTATIONS = {"linear": _linear, "parts": _by_parts, "keras": multiply}
