"""Multiplies by matrices in int4 for decoding on PyTorch's CPU.

Keras puts two numbers into a byte. To make floats of them takes PyTorch longer than to multiply by
floats, so a few rows of inputs go other ways. A linear layer sums the rows of its matrix as those
of an embedding in four bits, for which PyTorch has a kernel. The logits need products with rows:
inputs are split into digits of 8 bits, and the product of whole numbers reads the embedding as it
is; three digits hold 24 bits below the largest number of a group. The results are those of
`layers.int4`, but for the order of sums.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import NamedTuple

import torch

from keras_rgemma.generation.torch.kept import kept
from keras_rgemma.keras_internals.torch import int_mm, normal_tensors
from keras_rgemma.ops.matmul.torch import HAS_FBGEMM, bags, largest_divisor

_ELEMENTS = 1 << 22  # unpacked at a time: larger arrays come from the system, page by page
_BYTES = 1 << 20  # of a matrix that go another way at a time, so that they stay in the cache
_LOGIT_BYTES = 1 << 21  # of an embedding that are multiplied at a time
_ROWS = 2  # the most inputs that go another way; for more, floats are faster
_GROUPS = 6  # the most groups of rows that one product sums side by side
_BASE = 254.0  # of a digit between -127 and 127
_bag_sums = torch.ops.quantized.embedding_bag_4bit_rowwise_offsets


def int4_map(
    packed: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    group_size: int,
    shape: tuple[int, ...],
    dtype: torch.dtype,
) -> Callable[[torch.Tensor], torch.Tensor]:
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
    plan = _plan(shape, 2 * packed.shape[1], size) if HAS_FBGEMM else None

    def product(x: torch.Tensor) -> torch.Tensor:
        x = x.to(dtype)
        is_compiling = torch.compiler.is_compiling()
        if plan and 0 < x.numel() <= _ROWS * plan.rows and not is_compiling:
            return _by_bags(x, packed, scale, zero, plan)
        run = _by_groups if by_groups else _by_matrices
        if by_groups and is_compiling and x.numel() == rows:
            run = _in_one_loop
        # In each call, for the weights may change.
        halves = [(scale[:, i::2], zero[:, i::2].to(scale.dtype)) for i in (0, 1)]
        parts = [run(x, packed, i, *half, size, shape) for i, half in enumerate(halves)]
        return torch.stack(parts, -1).flatten(-2)

    return product


def int4_logits(
    x: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor
) -> torch.Tensor:
    """Multiplies float hidden states [..., D] by an embedding in int4.

    Args:
        x: float [..., D].
        packed: int8 tensor [V, D / 2]; see `layers.int4.int4_row_product`.
        scale: float tensor [V, G], D is a multiple of G.
        zero: int8 tensor [V, G].

    Returns:
        Float [..., V] in the dtype of `x`.
    """
    is_few = 0 < x.numel() <= _ROWS * x.shape[-1] and not torch.compiler.is_compiling()
    run, at_once = (_logits_by_digits, _LOGIT_BYTES) if is_few else (_logits_by_groups, _ELEMENTS)
    at_once = max(1, at_once // packed.shape[1])
    blocks = (slice(start, start + at_once) for start in range(0, len(packed), at_once))
    parts = [run(x, packed[i], scale[i].mT, zero[i].mT.to(scale.dtype)) for i in blocks]
    return torch.cat(parts, -1).view(*x.shape[:-1], -1).to(x.dtype)


class _Plan(NamedTuple):
    """Holds which rows of a matrix, or of H blocks one below the other, make a bag.

    A bag is the rows of a block that share scales.

    Attributes:
        rows: int, H * I.
        blocks: int, H.
        pieces: list of tuples, each a slice of the rows and, for `embedding_bag`, the rows of all
            bags in it and where each bag begins.
        scales: int [bags], the row of scales of each bag; or None if rows and scales are in order.
    """

    rows: int
    blocks: int
    pieces: list[tuple[slice, torch.Tensor, torch.Tensor]]
    scales: torch.Tensor | None = None


@functools.cache
def _plan(shape: tuple[int, ...], width: int, size: int) -> _Plan | None:
    """Returns the `_Plan` of a matrix [I, J] or [H, I, J], or None where its bags would differ.

    Args:
        shape: tuple of ints.
        width: int, the columns of the matrix as Keras rounds it: for blocks [I, H * J], filled in
            the order of their elements.
        size: int, the rows of it that share scales.
    """
    *blocks, inputs, outputs = shape
    if not blocks:
        if inputs % size:
            return None
        at_once = size * max(1, _BYTES // (size * width // 2))
        slices = [slice(i, min(i + at_once, inputs)) for i in range(0, inputs, at_once)]
        return _Plan(inputs, 1, [(x, *bags(x.stop - x.start, size)) for x in slices])
    if width % outputs:
        return None
    row, of_one = torch.arange(blocks[0] * inputs, device="cpu"), width // outputs
    scales = row // of_one // size * of_one + row % of_one
    keys, order = (row // inputs * len(row) + scales).sort(stable=True)
    keys, counts = keys.unique_consecutive(return_counts=True)
    if len((keys // len(row)).bincount().unique()) > 1:
        return None
    piece = slice(0, len(row)), order.int(), (counts.cumsum(0) - counts).int()
    return _Plan(len(row), blocks[0], [piece], keys % len(row))


class _Scratch(threading.local):
    """Holds rows in the form of an embedding in four bits, whose numbers each product replaces.

    Behind its numbers a row has two more, 1 and 0, so that a bag also sums the inputs; and in
    float16 its scale 1 and its offset 0.
    """

    def __init__(self) -> None:
        self._rows = {}

    def filled(self, numbers: torch.Tensor) -> torch.Tensor:
        """Returns uint8 [R, N + 5] with signed numbers [R, N] as an embedding's: larger by 8."""
        count, width = numbers.shape
        rows = self._rows.get((count, width))
        if rows is None:
            with normal_tensors():
                rows = torch.zeros((count, width + 5), dtype=torch.uint8, device="cpu")
                rows[:, width] = 1
                rows[:, -4:-2] = torch.ones(1, dtype=torch.float16).view(torch.uint8)
                rows = self._rows[count, width] = rows, rows.view(torch.int8)[:, :width]
        torch.bitwise_xor(numbers, -0x78, out=rows[1])
        return rows[0]


_scratch = _Scratch()


def _by_bags(
    x: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, plan: _Plan
) -> torch.Tensor:
    """Multiplies a few rows, [..., I] or [H, N, I], by the bags of a plan."""
    x_HBI = x.float().reshape(plan.blocks, -1, plan.rows // plan.blocks)
    x_BR = x_HBI.transpose(0, 1).reshape(-1, plan.rows).contiguous()
    numbers = packed.view(plan.rows, -1)
    outputs = 2 * numbers.shape[1]
    if plan.scales is not None:
        scale, zero = (y.view(-1, outputs)[plan.scales] for y in (scale, zero))
        x_BR = x_BR[:, plan.pieces[0][1]]
    parts_B = [[] for _ in range(len(x_BR))]
    for piece, indices, offsets in plan.pieces:
        rows = _scratch.filled(numbers[piece])
        for parts, x_R in zip(parts_B, x_BR[:, piece], strict=True):
            parts.append(_bag_sums(rows, indices, offsets, per_sample_weights=x_R))
    sums_BGJ = torch.stack([x[0] if len(x) == 1 else torch.cat(x) for x in parts_B])
    y_BGJ, x_BG1 = sums_BGJ[..., :outputs], sums_BGJ[..., outputs : outputs + 1]
    y_BGJ = (y_BGJ - (zero + 8.0) * x_BG1) * scale
    y_HBJ = y_BGJ.unflatten(1, (plan.blocks, -1)).sum(2).transpose(0, 1)
    return y_HBJ.reshape(*x.shape[:-1], -1).to(x.dtype)


class _Digits(NamedTuple):
    """Holds rows that are split into digits, for products of whole numbers.

    A product has a row for each of 3 digits, B inputs and n groups, and is zero outside the group.

    Attributes:
        rows_CMK: int8, C products of M = 3 * B * n rows, each of the K elements of n groups.
        scales_3BCn: float, what each row's product is multiplied by.
        sums_BG: float, the sum of each group.
    """

    rows_CMK: torch.Tensor
    scales_3BCn: torch.Tensor
    sums_BG: torch.Tensor


def _split_half(x: torch.Tensor, size: int, half: int) -> _Digits:
    """Splits the even (0) or odd (1) elements of [..., D], in groups of `size`."""
    x_BGS = x.reshape(-1, x.shape[-1])[:, half::2].float().unflatten(1, (-1, size))
    groups = x_BGS.shape[1]
    n = largest_divisor(groups, _GROUPS)
    scale_BG = x_BGS.abs().amax(-1).clamp_min_(1e-30) / 127.0
    rest, digits = x_BGS / scale_BG[..., None], []
    for _ in range(3):
        digits.append(rest.round())
        rest = (rest - digits[-1]) * _BASE
    digits_3BCnS = torch.stack(digits).to(torch.int8).unflatten(2, (-1, n))
    rows_C3BnnS = digits_3BCnS.new_zeros(groups // n, 3, len(x_BGS), n, n, size)
    rows_C3BnnS.diagonal(dim1=3, dim2=4).copy_(digits_3BCnS.permute(2, 0, 1, 4, 3))
    powers = scale_BG.new_tensor([_BASE**-i for i in range(3)])
    scales_3BCn = (powers[:, None, None] * scale_BG).unflatten(2, (-1, n))
    return _Digits(rows_C3BnnS.flatten(4).flatten(1, 3), scales_3BCn, x_BGS.sum(-1))


# One for each half, which the blocks of an embedding take in turn.
_split = [kept(functools.partial(_split_half, half=half)) for half in (0, 1)]


def _group_sums(digits: _Digits, numbers: torch.Tensor) -> torch.Tensor:
    """Sums `x n` over each group.

    Args:
        digits: `_Digits` of x.
        numbers: int8 [I, N], 16 times the numbers n of a matrix, so that a byte holds them.

    Returns:
        Float [B, G, N].
    """
    rows_CMK, (_, rows, _, n) = digits.rows_CMK, digits.scales_3BCn.shape
    blocks = numbers.split(rows_CMK.shape[-1])
    sums_CMN = torch.stack([int_mm(*pair) for pair in zip(rows_CMK, blocks, strict=True)])
    sums_C3BnN = sums_CMN.float().unflatten(1, (3, rows, n))
    scales_C3Bn1 = digits.scales_3BCn.permute(2, 0, 1, 3)[..., None] / 16.0
    return (sums_C3BnN * scales_C3Bn1).sum(1).transpose(0, 1).flatten(1, 2)


def _sixteenfold(packed: torch.Tensor, half: int) -> torch.Tensor:
    """Returns 16 times the even (0) or odd (1) columns, int8."""
    return packed & -16 if half else packed * 16


def _logits_by_digits(
    x: torch.Tensor, packed: torch.Tensor, scale_GV: torch.Tensor, zero_GV: torch.Tensor
) -> torch.Tensor:
    """Multiplies a few rows [..., D] by an embedding in the digits of the rows; returns [B, V]."""
    y_BGV, size = 0, packed.shape[1] // len(scale_GV)
    for half in (0, 1):
        digits = _split[half](x, size)
        y_BGV = y_BGV + _group_sums(digits, _sixteenfold(packed, half).mT)
        y_BGV = torch.addcmul(y_BGV, digits.sums_BG[..., None], zero_GV, value=-1.0)
    return (y_BGV * scale_GV).sum(1)


def _by_groups(
    x: torch.Tensor,
    packed: torch.Tensor,
    half: int,
    scale: torch.Tensor,
    zero: torch.Tensor,
    size: int,
    shape: tuple[int, ...],
) -> torch.Tensor:
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


def _in_one_loop(
    x: torch.Tensor,
    packed: torch.Tensor,
    half: int,
    scale: torch.Tensor,
    zero: torch.Tensor,
    size: int,
    shape: tuple[int, ...],
) -> torch.Tensor:
    """Sums as `_by_groups` for a single row; compiled, it needs no room for the matrix."""
    x_GK1 = x.reshape(len(zero), size, 1).float()
    numbers_GKN = _numbers(packed, half).float().unflatten(0, (-1, size))
    product_GN = (x_GK1 * numbers_GKN).sum(1)
    y_N = ((product_GN - zero * x_GK1.sum(1)) * scale).sum(0)
    return y_N.view(*x.shape[:-1], -1).to(x.dtype)


def _by_matrices(
    x: torch.Tensor,
    packed: torch.Tensor,
    half: int,
    scale: torch.Tensor,
    zero: torch.Tensor,
    size: int,
    shape: tuple[int, ...],
) -> torch.Tensor:
    """Makes floats of the matrix, or of its blocks, and multiplies."""
    scale, zero = (y.repeat_interleave(size, 0)[: len(packed)] for y in (scale, zero))
    matrix = ((_numbers(packed, half) - zero) * scale).to(x.dtype)
    return x @ matrix.view(*shape[:-1], shape[-1] // 2)


def _logits_by_groups(
    x: torch.Tensor, packed: torch.Tensor, scale_GV: torch.Tensor, zero_GV: torch.Tensor
) -> torch.Tensor:
    """Multiplies rows [..., D] by the floats of an embedding; returns [M, V]."""
    groups = len(scale_GV)
    x_GMK = x.float().reshape(-1, groups, x.shape[-1] // groups).transpose(0, 1)
    y_GMV = -zero_GV[:, None] * x_GMK.sum(-1, keepdim=True)
    for half in (0, 1):
        numbers_VGK = _numbers(packed, half).float().unflatten(1, (groups, -1))
        y_GMV += x_GMK[..., half::2] @ numbers_VGK.permute(1, 2, 0)
    return (y_GMV * scale_GV[:, None]).sum(0)


def _numbers(packed: torch.Tensor, half: int) -> torch.Tensor:
    """Unpacks the even (0) or odd (1) columns as int8."""
    return packed >> 4 if half else (packed << 4) >> 4
