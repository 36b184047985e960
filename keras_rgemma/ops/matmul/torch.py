"""Multiplies rows by a matrix on PyTorch.

On a CPU PyTorch asks MKL, or in half precision oneDNN. MKL may give a single row to one thread, and
oneDNN copies the matrix first; MKL does not use all that AMD's processors have. How much faster the
ways below are is in benchmarks/products_torch.md.
"""

import functools
import pathlib
import platform
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from keras_rgemma.keras_internals.torch import onednn_product
from keras_rgemma.ops.matmul.plain import multiply

# The bags that a single row is summed in, at most. The number does not follow that of the threads,
# which may change from token to token: the order of these sums shall not.
PARTS = 16
SMALLEST = 1 << 16  # elements of a matrix that is worth bags
HAS_FBGEMM = "fbgemm" in torch.backends.quantized.supported_engines


def prefers_onednn() -> bool:
    """Returns whether this is a processor of AMD with AVX-512, and PyTorch has oneDNN."""
    try:
        with pathlib.Path("/proc/cpuinfo").open(encoding="utf-8", errors="ignore") as file:
            processor = file.read(1024)  # the first processor: there may be hundreds
    except OSError:
        processor = platform.processor()
    has_avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return "AuthenticAMD" in processor and has_avx512 and torch.backends.mkldnn.is_available()


PREFERS_ONEDNN = prefers_onednn()


def default_implementation() -> str:
    return "onednn" if PREFERS_ONEDNN else "rows"


def _linear(
    x: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None, transpose_kernel: bool
) -> torch.Tensor:
    """Multiplies and adds in one operation, without a pass over memory for the bias."""
    if x.dtype != kernel.dtype or (bias is not None and bias.dtype != x.dtype):
        return multiply(x, kernel, bias, transpose_kernel)  # promotes
    return functional.linear(x, kernel if transpose_kernel else kernel.mT, bias)


def _rows(
    x: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None, transpose_kernel: bool
) -> torch.Tensor:
    """Multiplies as `_linear`, but a single row on a CPU as the rows of an embedding."""
    if transpose_kernel or not _is_single_row(x, kernel):
        return _linear(x, kernel, bias, transpose_kernel)
    parts = _parts if torch.compiler.is_compiling() else _kept_parts
    indices, offsets = parts(len(kernel))
    # Weighted sums of rows: all threads take part, at the speed of memory, in float32.
    parts_PJ = torch.embedding_bag(
        kernel, indices, offsets, mode=0, per_sample_weights=x.reshape(-1)
    )[0]
    y_J = parts_PJ[0] if len(parts_PJ) == 1 else parts_PJ.sum(0)
    y = y_J.view(*x.shape[:-1], -1)
    return y if bias is None else y + bias


def _is_single_row(x: torch.Tensor, kernel: torch.Tensor) -> bool:
    """Returns whether a row is to be multiplied, without gradients, by a large matrix on a CPU."""
    return (
        HAS_FBGEMM
        and x.device.type == "cpu"
        and kernel.numel() >= SMALLEST
        and not torch.is_grad_enabled()
        and not torch.compiler.is_exporting()  # where the number of rows may be a symbol
        and x.dtype == kernel.dtype
        and x.numel() == x.shape[-1] == len(kernel)
        and kernel.is_contiguous()
    )


def _onednn(
    x: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None, transpose_kernel: bool
) -> torch.Tensor:
    """Multiplies as `_rows`, but several rows in float32 on a CPU with oneDNN."""
    if not torch.backends.mkldnn.is_available():
        raise ValueError(
            "This PyTorch has no oneDNN, which matmul='onednn' takes. Choose 'auto' or 'linear'."
        )
    kernel_IJ = kernel.mT if transpose_kernel else kernel
    is_row = not transpose_kernel and _is_single_row(x, kernel)
    if is_row or not _is_for_onednn(x, kernel_IJ, bias):
        return _rows(x, kernel, bias, transpose_kernel)
    run = _Product.apply if torch.is_grad_enabled() else onednn_product
    return run(x.reshape(-1, x.shape[-1]), kernel_IJ, bias).view(*x.shape[:-1], -1)


def _is_for_onednn(x: torch.Tensor, kernel_IJ: torch.Tensor, bias: torch.Tensor | None) -> bool:
    return (
        x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and x.dtype == kernel_IJ.dtype == torch.float32
        and x.numel() > 0
        and x.shape[-1] == len(kernel_IJ)
        and (bias is None or (bias.dtype == x.dtype and bias.shape == kernel_IJ.shape[1:]))
    )


class _Product(torch.autograd.Function):
    """Gives the product with oneDNN, which has none of its own, a gradient of such products.

    Derivatives in forward mode need "linear".
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x_MI: torch.Tensor, kernel_IJ: torch.Tensor, bias_J: torch.Tensor | None
    ) -> torch.Tensor:
        return onednn_product(x_MI, kernel_IJ, bias_J)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        x_MI, kernel_IJ, _ = inputs
        needs_x, needs_kernel, _ = ctx.needs_input_grad
        # What LoRA leaves frozen needs no input kept.
        ctx.save_for_backward(x_MI if needs_kernel else None, kernel_IJ if needs_x else None)

    @staticmethod
    def backward(ctx: Any, upstream_MJ: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_MI, kernel_IJ = ctx.saved_tensors
        needs_x, needs_kernel, needs_bias = ctx.needs_input_grad
        run = _Product.apply if torch.is_grad_enabled() else onednn_product
        return (
            run(upstream_MJ, kernel_IJ.mT, None) if needs_x else None,
            run(x_MI.mT, upstream_MJ, None) if needs_kernel else None,
            upstream_MJ.sum(0) if needs_bias else None,
        )


def bags(rows: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the indices of rows and the offsets of bags of `size` rows, for `embedding_bag`."""
    indices = torch.arange(rows, dtype=torch.int32, device="cpu")
    return indices, indices[::size].contiguous()


def largest_divisor(number: int, most: int) -> int:
    """Returns the largest divisor of a number that is at most `most`."""
    return max(divisor for divisor in range(1, most + 1) if number % divisor == 0)


def _parts(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the bags of rows in as many equal parts as there may be."""
    return bags(rows, rows // largest_divisor(rows, PARTS))


_kept_parts = functools.cache(_parts)

IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {
    "linear": _linear,
    "rows": _rows,
    "onednn": _onednn,
    "keras": multiply,
}
