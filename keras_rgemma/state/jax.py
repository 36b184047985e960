"""Registers classes as pytrees of JAX, and reads samples and checksums of weights."""

import functools
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax import lax

from keras_rgemma.keras_internals.jax import arrays_of
from keras_rgemma.state.checksum import (
    SMALL,
    column_factors,
    row_factors,
    rows_and_columns,
    sample_and_checksum,
)

_known = {}  # by the id of an array: a weak reference to it, its strides, sample and checksum


def register_pytree(cls: type[Any]) -> None:
    """Registers a class that has `tree_flatten` and `tree_unflatten` as a pytree of JAX."""
    jax.tree_util.register_pytree_node_class(cls)


class StoredArray(NamedTuple):
    """Holds the array of a variable, and whether its axes are exchanged."""

    array: jax.Array
    is_turned: bool


def values_of(variables: Sequence[keras.Variable]) -> list[StoredArray]:
    """Lists the arrays of variables as they are stored, each a `StoredArray`."""
    return [StoredArray(*pair) for pair in zip(*arrays_of(variables), strict=True)]


def unchanging(values: Sequence[StoredArray]) -> None:
    """Returns None: training gives up the memory of arrays."""
    return None


def samples_and_checksums(
    values: Sequence[StoredArray], strides: Sequence[tuple[int, ...]]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Reads every so many numbers of each array, and computes the checksum of all its numbers.

    An array never changes: what was read of it is kept as long as it lives.

    Args:
        values: list of `StoredArray`.
        strides: list of tuples of int, one stride an axis.

    Returns:
        Two lists of NumPy arrays: samples [N], and checksums, two integers each.
    """
    found = [_known_parts(x.array, steps) for x, steps in zip(values, strides, strict=True)]
    missing = [i for i, parts in enumerate(found) if parts is None]
    read = [_read(*values[i], strides[i]) for i in missing]
    for i, parts in zip(missing, jax.device_get(read), strict=True):
        if not isinstance(parts, tuple):
            parts = sample_and_checksum(parts, strides[i])
        found[i] = parts
        _keep(values[i].array, strides[i], parts)
    return [sample for sample, _ in found], [checksum for _, checksum in found]


def _read(
    array: jax.Array, is_turned: bool, steps: tuple[int, ...]
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Returns a small matrix or vector as it is; of a large one, its sample and checksum."""
    if array.size <= SMALL:
        return array.T if is_turned else array
    rows, columns = rows_and_columns(array.shape[::-1] if is_turned else array.shape)
    factors = row_factors(rows), column_factors(columns)
    return _sample_and_checksum(array, is_turned, steps, *factors)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _sample_and_checksum(
    array: jax.Array,
    is_turned: bool,
    steps: tuple[int, ...],
    row_factors_R2: np.ndarray,
    column_factors_C: np.ndarray,
) -> tuple[jax.Array, jax.Array]:
    value = array.T if is_turned else array
    sample = lax.slice(value, (0,) * value.ndim, value.shape, steps).reshape(-1)
    bits_RC = _bits(value).reshape(len(row_factors_R2), len(column_factors_C))
    sums_R = jnp.sum(bits_RC * column_factors_C, axis=1, dtype="uint32")
    return sample, jnp.sum(sums_R[:, None] * row_factors_R2, axis=0, dtype="uint32")


def _bits(value: jax.Array) -> jax.Array:
    """Returns the 16 bits of each number that count, uint32."""
    if not jnp.issubdtype(value.dtype, jnp.floating):
        return value.astype("int32").astype("uint32") & 0xFFFF
    if value.dtype == jnp.bfloat16:
        return lax.bitcast_convert_type(value, jnp.uint16).astype("uint32")
    bits = lax.bitcast_convert_type(value.astype("float32"), jnp.uint32)
    # To the nearest bfloat16, ties to even, in integers: a cast could take tiny numbers for zero.
    return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16


def _known_parts(value: jax.Array, steps: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray] | None:
    array, known_steps, parts = _known.get(id(value), (lambda: None, None, None))
    return parts if array() is value and known_steps == steps else None


def _keep(value: jax.Array, steps: tuple[int, ...], parts: tuple[np.ndarray, np.ndarray]) -> None:
    key = id(value)
    # An id is given again, but not before its array is gone.
    _known[key] = (weakref.ref(value, lambda _: _known.pop(key, None)), steps, parts)
