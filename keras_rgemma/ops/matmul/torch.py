"""Multiplies rows by a matrix on PyTorch.

On a CPU PyTorch asks MKL, or in half precision oneDNN. A single row MKL may give to one thread, and
oneDNN copies the matrix first; MKL does not use all that AMD's processors have. How much faster the
ways below are is in benchmarks/products_torch.md.
"""

import functools
import pathlib
import platform

import torch
from torch.nn import functional

from keras_rgemma.keras_internals.torch import onednn_product
from keras_rgemma.ops.matmul.plain import multiply

# The bags that a single row is summed in. It does not follow the number of threads, which may
# change from token to token: the order of sums, and with it the results, shall not.
PARTS = min(16, torch.get_num_threads())
SMALLEST = 1 << 16  # elements of a matrix that is worth bags
HAS_FBGEMM = "fbgemm" in torch.backends.quantized.supported_engines


def default_implementation():
    return "onednn" if _is_faster_with_onednn() else "rows"


@functools.cache
def _is_faster_with_onednn():
    """Returns whether this is a processor of AMD with AVX-512."""
    try:
        processor = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="ignore")
    except OSError:
        processor = platform.processor()
    has_avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return "AuthenticAMD" in processor and has_avx512 and torch.backends.mkldnn.is_available()


def _linear(x, kernel, bias, transpose_kernel):
    """Multiplies and adds in one operation, without a pass over memory for the bias."""
    if x.dtype != kernel.dtype or (bias is not None and bias.dtype != x.dtype):
        return multiply(x, kernel, bias, transpose_kernel)  # promotes
    return functional.linear(x, kernel if transpose_kernel else kernel.mT, bias)


def _rows(x, kernel, bias, transpose_kernel):
    """Multiplies as `_linear`, but a single row without gradients as the rows of an embedding."""
    if not _is_single_row(x, kernel, transpose_kernel):
        return _linear(x, kernel, bias, transpose_kernel)
    parts = _parts if torch.compiler.is_compiling() else _kept_parts
    indices, offsets = parts(len(kernel))
    # A weighted sum of rows: computed in float32, by all threads, at the speed of memory.
    parts_PJ = torch.embedding_bag(
        kernel, indices, offsets, mode=0, per_sample_weights=x.reshape(-1)
    )[0]
    y_J = parts_PJ[0] if len(parts_PJ) == 1 else parts_PJ.sum(0)
    y = y_J.view(*x.shape[:-1], -1)
    return y if bias is None else y + bias


def _is_single_row(x, kernel, transpose_kernel):
    return (
        x.numel() == len(kernel)
        and kernel.numel() >= SMALLEST
        and not transpose_kernel
        and HAS_FBGEMM
        and not torch.is_grad_enabled()
        and x.device.type == "cpu"
        and x.dtype == kernel.dtype
        and kernel.is_contiguous()
    )


def _onednn(x, kernel, bias, transpose_kernel):
    """Multiplies as `_rows`, but several rows in float32 with oneDNN."""
    if not _takes_onednn(x, kernel) or _is_single_row(x, kernel, transpose_kernel):
        return _rows(x, kernel, bias, transpose_kernel)
    kernel = kernel.mT if transpose_kernel else kernel
    y = _product(x.reshape(-1, x.shape[-1]), kernel, bias)
    return y.view(*x.shape[:-1], -1)


def _takes_onednn(x, kernel):
    is_float32 = x.dtype == kernel.dtype == torch.float32
    has_rows = x.shape[:-1].numel() > 0
    return is_float32 and has_rows and x.device.type == "cpu" and not torch.compiler.is_compiling()


def product(x_MI, kernel_IJ, bias_J=None):
    """Multiplies two matrices, without a gradient, by the default implementation.

    Args:
        x_MI: float tensor.
        kernel_IJ: tensor of the same dtype.
        bias_J: tensor of the same dtype, or None.
    """
    if _takes_onednn(x_MI, kernel_IJ) and _is_faster_with_onednn():
        return onednn_product(x_MI, kernel_IJ, bias_J)
    return functional.linear(x_MI, kernel_IJ.mT, bias_J)


class _Product(torch.autograd.Function):
    """Gives the product with oneDNN, which has none of its own, a gradient of such products."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x_MI, kernel_IJ, bias_J):
        return onednn_product(x_MI, kernel_IJ, bias_J)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx, upstream_MJ):
        x_MI, kernel_IJ = ctx.saved_tensors
        needs_x, needs_kernel, needs_bias = ctx.needs_input_grad
        return (
            _product(upstream_MJ, kernel_IJ.mT) if needs_x else None,
            _product(x_MI.mT, upstream_MJ) if needs_kernel else None,
            upstream_MJ.sum(0) if needs_bias else None,
        )


def _product(x_MI, kernel_IJ, bias_J=None):
    run = _Product.apply if torch.is_grad_enabled() else onednn_product
    return run(x_MI, kernel_IJ, bias_J)


def bags(rows, size):
    """Returns the indices of rows and the offsets of bags of `size` rows, for `embedding_bag`."""
    indices = torch.arange(rows, dtype=torch.int32, device="cpu")
    return indices, indices[::size].contiguous()


def _parts(rows):
    """Returns the bags of rows in as many equal parts as there may be."""
    return bags(rows, rows // max(parts for parts in range(1, PARTS + 1) if rows % parts == 0))


_kept_parts = functools.cache(_parts)
IMPLEMENTATIONS = {"linear": _linear, "rows": _rows, "onednn": _onednn, "keras": multiply}
