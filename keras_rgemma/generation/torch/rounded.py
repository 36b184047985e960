"""Multiplies by matrices in int8 and int4 in few operations, for decoding on PyTorch's CPU.

The results are those of `layers.int8` and `layers.int4`, but for the order of sums. Those functions
keep what a gradient needs, and are made for many rows; a token has one.
"""

import functools
import weakref

import keras
import torch

from keras_rgemma.keras_internals.torch import int_mm
from keras_rgemma.layers.int4 import is_fast
from keras_rgemma.layers.rounded import MODES

_KEPT = 1 << 16  # elements of rounded rows that may stay after a step
_ELEMENTS = 1 << 22  # unpacked at a time: larger arrays come from the system, page by page


def rounded_product(mode, weights, *, shape, quantizer, group_size, dtype):
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
def rounded_rows(value_range, epsilon):
    """Returns the function that rounds rows to int8 as `AbsMaxQuantizer` with these arguments.

    For one token it keeps its last result: layers that stand side by side round the same tensor.
    The function returns whole numbers like its argument [..., I], in its dtype and in int8, and
    what they are divided by, [..., 1].
    """
    (low, high), last = value_range, (lambda: None, None)
    # PyTorch divides a number by a tensor through a reciprocal, which rounds twice.
    highest = torch.tensor(float(high))

    def rounded(x):
        scale = highest / (x.abs().amax(-1, keepdim=True) + epsilon)
        numbers = (x * scale).round_().clamp_(low, high)
        return numbers, numbers.to(torch.int8), scale

    def run(x):
        nonlocal last
        if torch.compiler.is_compiling():  # finds out itself what it has computed before
            return rounded(x)
        rounded_x, result = last  # one tuple, for other threads
        if rounded_x() is x:
            return result
        result = rounded(x)
        if x.numel() <= _KEPT:
            last = weakref.ref(x), result
        return result

    return run


def int8_product(x, kernel, scale, quantizer):
    """Rounds `x`, [..., I] or [H, N, I], and multiplies by [I, J] or [H, I, J]; no gradient."""
    rounded = rounded_rows(tuple(quantizer.value_range), quantizer.epsilon)
    numbers, small_numbers, x_scale = rounded(x)
    if kernel.ndim == 3:
        y = numbers.float() @ kernel.float()  # exact for blocks of up to 1,040 inputs
    else:
        y = int_mm(small_numbers.view(-1, x.shape[-1]), kernel)
        y = y.view(*x.shape[:-1], kernel.shape[-1])
    return y.to(x.dtype).div_(x_scale * scale)


def int4_map(packed, scale, zero, group_size, shape, dtype):
    """Returns a function of [..., I], or [H, N, I], that multiplies by a matrix in int4.

    Args:
        packed: int8 tensor [R, N / 2]; see `layers.int4.int4_product`.
        scale: float tensor [G, N].
        zero: int8 tensor [G, N].
        group_size: int.
        shape: tuple of ints, [I, J] or [H, I, J]; J is even.
        dtype: `torch.dtype` of the results.
    """
    rows = len(packed)
    size = rows if len(zero) == 1 else group_size
    by_groups = len(shape) == 2 and rows % size == 0

    def product(x):
        run = _int4_by_groups if by_groups else _int4_by_matrices
        if by_groups and torch.compiler.is_compiling() and x.numel() == rows:
            run = _int4_in_one_loop
        # In each call, for the weights may change.
        halves = ((i, scale[:, i::2].contiguous(), zero[:, i::2].to(scale.dtype)) for i in (0, 1))
        parts = [run(x.to(dtype), packed, *half, size, shape) for half in halves]
        return torch.stack(parts, -1).flatten(-2)

    return product


def _int4_by_groups(x, packed, half, scale, zero, size, shape):
    """Sums `scale * (x n - zero * sum(x))` over groups of rows, with n as they are stored."""
    x_GM = x.reshape(-1, len(zero), size).transpose(0, 1).float()
    sum_GM = x_GM.sum(-1, keepdim=True)
    at_once = max(1, _ELEMENTS // (size * packed.shape[1]))
    y = 0
    for start in range(0, len(zero), at_once):
        part = slice(start, start + at_once)
        numbers = _numbers(packed[start * size : (start + at_once) * size], half).float()
        product = torch.bmm(x_GM[part], numbers.unflatten(0, (-1, size)))
        y = y + ((product - zero[part, None] * sum_GM[part]) * scale[part, None]).sum(0)
    return y.view(*x.shape[:-1], -1).to(x.dtype)


def _int4_in_one_loop(x, packed, half, scale, zero, size, shape):
    """Sums as `_int4_by_groups` for a single row; compiled, it needs no room for the matrix."""
    x_GK1 = x.reshape(len(zero), size, 1).float()
    numbers_GKN = _numbers(packed, half).float().unflatten(0, (-1, size))
    product_GN = (x_GK1 * numbers_GKN).sum(1)
    y_N = ((product_GN - zero * x_GK1.sum(1)) * scale).sum(0)
    return y_N.view(*x.shape[:-1], -1).to(x.dtype)


def _int4_by_matrices(x, packed, half, scale, zero, size, shape):
    """Makes floats of the matrix, or of its blocks, and multiplies."""
    scale, zero = (y.repeat_interleave(size, 0)[: len(packed)] for y in (scale, zero))
    matrix = ((_numbers(packed, half) - zero) * scale).to(x.dtype)
    return x @ matrix.view(*shape[:-1], shape[-1] // 2)


def rounded_logits(mode, x, arrays, quantizer, group_size):
    """Multiplies hidden states by a rounded embedding.

    Args:
        mode: str, "int8" or "int4".
        x: float [..., D].
        arrays: dict of tensors, as of `embedding_arrays`.
        quantizer: `AbsMaxQuantizer`, for int8.
        group_size: int, columns that share a scale in int4; D is a multiple of it.

    Returns:
        Float [..., V] in the dtype of `x`.
    """
    packed, scale = arrays["embeddings"], arrays["embeddings_scale"]
    if mode == "int8":
        return int8_product(x, packed.mT, scale.to(x.dtype), quantizer)
    zero = arrays["embeddings_zero"]
    groups, half_size = scale.shape[1], packed.shape[1] // scale.shape[1]
    x_GMK = x.float().reshape(-1, groups, 2 * half_size).transpose(0, 1)
    sum_GM = x_GMK.sum(-1)
    at_once = max(1, _ELEMENTS // packed.shape[1])
    parts = []
    for start in range(0, len(packed), at_once):
        rows = slice(start, start + at_once)
        y_GMV = -zero[rows].to(scale.dtype).mT[:, None] * sum_GM[:, :, None]
        for half in (0, 1):
            numbers_VGK = _numbers(packed[rows], half).float().unflatten(1, (groups, half_size))
            y_GMV += x_GMK[..., half::2] @ numbers_VGK.permute(1, 2, 0)
        parts.append((y_GMV * scale[rows].mT[:, None]).sum(0))
    return torch.cat(parts, -1).view(*x.shape[:-1], -1).to(x.dtype)


def _numbers(packed, half):
    """Unpacks the even (0) or odd (1) columns as int8."""
    return packed >> 4 if half else (packed << 4) >> 4
