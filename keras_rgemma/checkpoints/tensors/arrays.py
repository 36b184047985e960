"""Lays NumPy arrays out in memory."""

from __future__ import annotations

import concurrent.futures
import math
import os
from collections.abc import Sequence

import numpy as np

_ALIGNMENT = 64  # bytes: JAX and TensorFlow take an array that begins there without a copy
WORTH_THREADS = 1 << 20  # bytes
_TILE = 512, 32  # rows and columns of a matrix that are transposed in one go, for the cache


def in_rows(array: np.ndarray) -> np.ndarray:
    """Makes an array contiguous, by an aligned copy if need be. Some backends keep its strides."""
    return array if array.flags.c_contiguous else _copy(array)


def aligned_in_rows(array: np.ndarray) -> np.ndarray:
    """Makes an array contiguous and aligned, by a copy if need be."""
    is_aligned = array.ctypes.data % _ALIGNMENT == 0
    return array if array.flags.c_contiguous and is_aligned else _copy(array)


def _copy(array: np.ndarray) -> np.ndarray:
    """Copies an array into one that is contiguous and aligned, in all threads if it is large."""
    copy = _aligned(array.shape, array.dtype)
    if array.ndim < 2:
        copy[...] = array
        return copy
    source, target = (x.view(bits(array.dtype)) for x in (array, copy))
    *_, rows, columns = array.shape
    height, width = (rows, columns) if array.flags.c_contiguous else _TILE

    def fill(first: int, last: int) -> None:
        for i in range(first, last, height):
            for j in range(0, columns, width):
                tile = ..., slice(i, min(i + height, last)), slice(j, j + width)
                target[tile] = source[tile]

    if array.nbytes < WORTH_THREADS:
        fill(0, rows)
        return copy
    size = -(-rows // (os.cpu_count() or 1))  # each thread fills rows of its own
    starts = range(0, rows, size)
    with concurrent.futures.ThreadPoolExecutor() as threads:
        list(threads.map(fill, starts, (min(start + size, rows) for start in starts)))
    return copy


def _aligned(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Makes an aligned array without values."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, "u1")
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def bits(dtype: np.dtype) -> np.dtype:
    """Returns the unsigned integer dtype of the same size, which NumPy copies faster."""
    return np.dtype(f"u{dtype.itemsize}")


def is_turned_half(array: np.ndarray, dtype: str) -> bool:
    """Returns whether an array [I, J] of half precision lies in memory as [J, I], as in a file.

    Matrices of that dtype may then stay as they lie.

    Args:
        array: NumPy array.
        dtype: str, the dtype of its variable.
    """
    is_half = array.dtype == np.dtype(dtype) and array.dtype.itemsize == 2
    is_matrix = array.ndim == 2 and array.nbytes >= WORTH_THREADS
    return is_half and is_matrix and array.flags.f_contiguous and not array.flags.c_contiguous
