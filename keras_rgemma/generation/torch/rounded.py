"""Multiplies by matrices in int8 and int4 in few operations, for decoding on PyTorch's CPU.

The results are those of `layers.int8` and `layers.int4`, but for the order of sums. Those functions
keep what a gradient needs, and are made for many rows; a token has one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import torch

from keras_rgemma.generation.torch.int4 import int4_logits, int4_map
from keras_rgemma.generation.torch.kept import kept
from keras_rgemma.keras_internals.torch import int_mm
from keras_rgemma.layers.int4 import is_fast
from keras_rgemma.layers.rounded import MODES


def rounded_product(
    mode: str,
    weights: dict[str, torch.Tensor],
    *,
    shape: tuple[int, ...],
    quantizer: Any,
    group_size: int,
    dtype: torch.dtype,
) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Returns the product of a rounded linear layer: a function of [..., I], or [H, N, I].

    Args:
        mode: str, how the layer is quantized.
        weights: dict of names to tensors, see `LinearMapParts`.
        shape: tuple of ints, of the matrix before it was rounded, [I, J] or [H, I, J].
        quantizer: what rounds the inputs, or None.
        group_size: int, rows that share a scale in int4.
        dtype: `torch.dtype` of the computation.

    Returns:
        The function; None where the layer's own method has to be called.
    """
    if mode not in MODES or weights["kernel"].device.type != "cpu":
        return None
    kernel, scale, zero = (weights.get(x) for x in ("kernel", "kernel_scale", "kernel_zero"))
    if mode == "int8" and type(quantizer) is keras.quantizers.AbsMaxQuantizer:
        if kernel.ndim == 3:
            scale = scale[:, 0]  # of [H, 1, 1, J]
        return lambda x: int8_product(x.to(dtype), kernel, scale.to(dtype), quantizer)
    if mode == "int4" and is_fast(quantizer, zero, shape[-1]):
        return int4_map(kernel, scale, zero, group_size, shape, dtype)
    return None


@functools.cache
def rounded_rows(value_range: tuple[float, float], epsilon: float) -> Callable[..., Any]:
    """Returns the function that rounds rows to int8 as `AbsMaxQuantizer` with these arguments.

    The function returns whole numbers like its argument [..., I], in its dtype and in int8, and
    what they are divided by, [..., 1].
    """
    low, high = value_range
    # PyTorch divides a number by a tensor through a reciprocal, which rounds twice.
    highest = torch.tensor(float(high))

    @kept
    def run(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        scale = highest / (x.abs().amax(-1, keepdim=True) + epsilon)
        numbers = (x * scale).round_().clamp_(low, high)
        return numbers, numbers.to(torch.int8), scale

    return run


def int8_product(
    x: torch.Tensor, kernel: torch.Tensor, scale: torch.Tensor, quantizer: Any
) -> torch.Tensor:
    """Rounds `x`, [..., I] or [H, N, I], and multiplies by [I, J] or [H, I, J]; no gradient."""
    rounded = rounded_rows(tuple(quantizer.value_range), quantizer.epsilon)
    numbers, small_numbers, x_scale = rounded(x)
    if kernel.ndim == 3:
        y = numbers.float() @ kernel.float()  # exact for blocks of up to 1,040 inputs
    else:
        y = int_mm(small_numbers.view(-1, x.shape[-1]), kernel)
        y = y.view(*x.shape[:-1], kernel.shape[-1])
    return y.to(x.dtype).div_(x_scale * scale)


def rounded_logits(
    mode: str, x: torch.Tensor, arrays: dict[str, torch.Tensor], quantizer: Any
) -> torch.Tensor:
    """Multiplies hidden states by a rounded embedding.

    Args:
        mode: str, "int8" or "int4".
        x: float [..., D].
        arrays: dict of tensors, as of `embedding_arrays`.
        quantizer: `AbsMaxQuantizer`, for int8.

    Returns:
        Float [..., V] in the dtype of `x`.
    """
    packed, scale = arrays["embeddings"], arrays["embeddings_scale"]
    if mode == "int8":
        return int8_product(x, packed.mT, scale.to(x.dtype), quantizer)
    return int4_logits(x, packed, scale, arrays["embeddings_zero"])
