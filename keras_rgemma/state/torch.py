"""Reads samples and checksums of weights on PyTorch."""

import functools
import weakref
from collections.abc import Sequence

import keras
import numpy as np
import torch

from keras_rgemma.keras_internals.torch import change_count
from keras_rgemma.state.checksum import column_factors, row_factors, rows_and_columns

_CHUNK = 1 << 18  # numbers at a time: the arrays that are made of them stay in the cache
_known = {}  # by the id of a tensor: a weak reference to it, its changes, sample and checksum


def values_of(variables: Sequence[keras.Variable]) -> list[torch.Tensor]:
    """Lists the values of variables."""
    return [variable.value for variable in variables]


def unchanging(values: Sequence[torch.Tensor]) -> None:
    """Returns None: training changes tensors in place."""
    return None


def samples_and_checksums(
    values: Sequence[torch.Tensor], strides: Sequence[tuple[int, ...]]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Reads every so many numbers of each tensor, and computes the checksum of all its numbers.

    A checksum is kept until its tensor changes. PyTorch counts changes, but not those of
    `tensor.data`; the sample shows them.

    Args:
        values: list of tensors.
        strides: list of tuples of int, one stride an axis.

    Returns:
        Two lists: samples, float32 NumPy arrays [N], and checksums, two integers each.
    """
    flat = [
        value.detach()[tuple(slice(None, None, step) for step in steps)].reshape(-1).float()
        for value, steps in zip(values, strides, strict=True)
    ]
    known = [_kept(value) for value in values]
    stale = [i for i, parts in enumerate(known) if parts is None]
    computed = [_checksum(values[i]).view(torch.float32) for i in stale]
    parts = _copied_to_numpy(flat + computed)
    samples, computed = parts[: len(values)], iter(parts[len(values) :])
    checksums = []
    for value, sample, parts in zip(values, samples, known, strict=True):
        if parts is None:
            checksums.append(next(computed).view("uint32"))
        elif parts[0].tobytes() == sample.tobytes():
            checksums.append(parts[1])
        else:
            checksums.append(_checksum(value).cpu().numpy().view("uint32"))
        _keep(value, sample, checksums[-1])
    return samples, checksums


def _copied_to_numpy(tensors: Sequence[torch.Tensor]) -> list[np.ndarray]:
    """Converts float32 tensors [N] to NumPy with one copy from the device."""
    if len({x.device for x in tensors}) > 1:
        tensors = [x.cpu() for x in tensors]
    joined = torch.cat(tensors).cpu().numpy()
    return np.split(joined, np.cumsum([len(x) for x in tensors])[:-1])


def _kept(value: torch.Tensor) -> list[np.ndarray] | None:
    """Returns the sample and the checksum of a tensor if it has not changed since, or None."""
    tensor, count, *parts = _known.get(id(value), (lambda: None, None))
    return parts if tensor() is value and count == change_count(value) is not None else None


def _keep(value: torch.Tensor, *parts: np.ndarray) -> None:
    key = id(value)
    # An id is given again, but not before its tensor is gone.
    reference = weakref.ref(value, lambda _: _known.pop(key, None))
    _known[key] = (reference, change_count(value), *parts)


@torch.no_grad()
def _checksum(value: torch.Tensor) -> torch.Tensor:
    """Computes the checksum of a tensor, see `state.checksum`: uint32 [2] as int32."""
    rows, columns = rows_and_columns(value.shape)
    value_RC = value.detach().reshape(rows, columns)
    if value.device.type == "mps":  # which has no float64
        value_RC = value_RC.cpu()
    factors_C = _column_factors(columns, value_RC.device)
    chunks = value_RC.split(max(1, _CHUNK // columns))
    # Products below 2^32, of which float64 adds 2^21 exactly.
    sums_R = torch.cat([_bits(x_RC).double() @ factors_C for x_RC in chunks]).long()
    sums_2 = (sums_R[:, None] * _row_factors(rows, value_RC.device)).sum(0)
    return sums_2.to(torch.int32)


def _bits(value: torch.Tensor) -> torch.Tensor:
    """Returns the 16 bits of each number that count, int32."""
    if not value.is_floating_point():
        return value.to(torch.int32) & 0xFFFF
    if value.dtype == torch.bfloat16:
        return value.view(torch.int16).to(torch.int32) & 0xFFFF
    bits = value.float().view(torch.int32)
    # To the nearest bfloat16, ties to even, in integers: a cast could take tiny numbers for zero.
    rounded = (bits >> 16).bitwise_and_(1).add_(bits).add_(0x7FFF)
    return rounded.bitwise_right_shift_(16).bitwise_and_(0xFFFF)


@functools.cache
def _column_factors(size: int, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(column_factors(size).astype("float64")).to(device)


@functools.cache
def _row_factors(size: int, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(row_factors(size).astype("int64")).to(device)
