"""Registers classes as pytrees of JAX, and reads samples and checksums of weights."""

import functools
import weakref

import jax
import jax.numpy as jnp
from jax import lax

from keras_rgemma.state.checksum import (
    SMALL,
    column_factors,
    row_factors,
    rows_and_columns,
    sample_and_checksum,
)

_known = {}  # by the id of an array: a weak reference to it, its strides, sample and checksum


def register_pytree(cls):
    """Registers a class that has `tree_flatten` and `tree_unflatten` as a pytree of JAX."""
    jax.tree_util.register_pytree_node_class(cls)


def unchanging(values):
    """Returns None: training gives up the memory of arrays."""
    return None


def samples_and_checksums(values, strides):
    """Reads every so many numbers of each array, and computes the checksum of all its numbers.

    An array never changes: what was read of it is kept as long as it lives.

    Args:
        values: list of arrays.
        strides: list of tuples of int, one stride an axis.

    Returns:
        Two lists of NumPy arrays: samples [N], and checksums, two integers each.
    """
    found = [_known_parts(value, steps) for value, steps in zip(values, strides, strict=True)]
    missing = [i for i, parts in enumerate(found) if parts is None]
    read = [_read(values[i], strides[i]) for i in missing]
    for i, parts in zip(missing, jax.device_get(read), strict=True):
        if not isinstance(parts, tuple):
            parts = sample_and_checksum(parts, strides[i])
        found[i] = parts
        _keep(values[i], strides[i], parts)
    return [sample for sample, _ in found], [checksum for _, checksum in found]


def _read(value, steps):
    """Returns a small array as it is; of a large one, its sample and checksum."""
    if value.size <= SMALL:
        return value
    rows, columns = rows_and_columns(value.shape)
    return _sample_and_checksum(value, steps, row_factors(rows), column_factors(columns))


@functools.partial(jax.jit, static_argnums=1)
def _sample_and_checksum(value, steps, row_factors_R2, column_factors_C):
    sample = lax.slice(value, (0,) * value.ndim, value.shape, steps).reshape(-1)
    bits_RC = _bits(value).reshape(len(row_factors_R2), len(column_factors_C))
    sums_R = jnp.sum(bits_RC * column_factors_C, axis=1, dtype="uint32")
    return sample, jnp.sum(sums_R[:, None] * row_factors_R2, axis=0, dtype="uint32")


def _bits(value):
    """Returns the 16 bits of each number that count, uint32."""
    if not jnp.issubdtype(value.dtype, jnp.floating):
        return value.astype("int32").astype("uint32") & 0xFFFF
    if value.dtype == jnp.bfloat16:
        return lax.bitcast_convert_type(value, jnp.uint16).astype("uint32")
    bits = lax.bitcast_convert_type(value.astype("float32"), jnp.uint32)
    # To the nearest bfloat16, ties to even, in integers: a cast could take tiny numbers for zero.
    return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16


def _known_parts(value, steps):
    array, known_steps, parts = _known.get(id(value), (lambda: None, None, None))
    return parts if array() is value and known_steps == steps else None


def _keep(value, steps, parts):
    key = id(value)
    # An id is given again, but not before its array is gone.
    _known[key] = (weakref.ref(value, lambda _: _known.pop(key, None)), steps, parts)
