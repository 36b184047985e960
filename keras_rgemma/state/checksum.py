"""Defines the checksum of a weight: sums of all its numbers with factors that differ by place.

A weight [..., C] is taken as rows [R, C]. Its checksum is two sums,

    sum_i v_ik (sum_j u_j b_ij)  mod 2^32,  k = 0, 1,

with factors u [C] of the columns and v [R, 2] of the rows. For a floating-point number, b is the
16 bits of the nearest bfloat16; for an integer or a boolean, its last 16 bits. All is arithmetic of
integers, so every backend and device finds the same sums, in any order of adding. Two weights that
differ in one number have different checksums.
"""

import functools
from collections.abc import Sequence

import numpy as np

# Weights up to this size are copied as a whole: no device needs a program for their checksums.
SMALL = 1 << 16


def rows_and_columns(shape: Sequence[int]) -> tuple[int, int]:
    """Returns R and C, the sizes of a weight that is taken as rows."""
    columns = shape[-1] if len(shape) else 1
    return int(np.prod(shape)) // max(1, columns), columns


@functools.cache
def column_factors(size: int) -> np.ndarray:
    """Returns the factors of columns: odd numbers below 2^16, uint32 [size]."""
    return _mixed(size, 1) & np.uint32(0xFFFF) | np.uint32(1)


@functools.cache
def row_factors(size: int) -> np.ndarray:
    """Returns the factors of rows: odd numbers, uint32 [size, 2]."""
    return np.stack([_mixed(size, seed) | np.uint32(1) for seed in (2, 3)], axis=1)


def _mixed(size: int, seed: int) -> np.ndarray:
    """Returns `size` uint32 numbers without a pattern, by the last steps of MurmurHash3."""
    x = np.arange(size, dtype="uint32") + np.uint32(seed * 0x9E3779B9 % 2**32)
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))


def sample_and_checksum(array: np.ndarray, steps: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Computes what the files named after backends compute, from a NumPy array.

    Args:
        array: NumPy array, a weight.
        steps: tuple of int, the stride of the sample along each axis.

    Returns:
        The sample [N] and the checksum, uint32 [2].
    """
    sample = array[tuple(slice(None, None, step) for step in steps)].reshape(-1)
    rows, columns = rows_and_columns(array.shape)
    bits_RC = _bits(array).reshape(rows, columns)
    sums_R = (bits_RC * column_factors(columns)).sum(axis=1, dtype="uint32")
    return sample, (sums_R[:, None] * row_factors(rows)).sum(axis=0, dtype="uint32")


def _bits(array: np.ndarray) -> np.ndarray:
    """Returns the 16 bits of each number that count, uint32."""
    if array.dtype.kind in "iub":
        return array.astype("int32").view("uint32") & np.uint32(0xFFFF)
    bits = np.ascontiguousarray(array, "float32").view("uint32")
    # To the nearest bfloat16, ties to even, in integers: a cast could take tiny numbers for zero.
    return (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
