"""Registers classes as pytrees of JAX, and samples arrays of weights."""

import weakref

import jax
from jax import lax

_known = {}  # by the id of an array: a weak reference to it, and its sample


def register_pytree(cls):
    """Registers a class that has `tree_flatten` and `tree_unflatten` as a pytree of JAX."""
    jax.tree_util.register_pytree_node_class(cls)


def samples(values, strides):
    """Reads every so many numbers of each array.

    An array never changes: what was read of it is kept as long as it lives.

    Args:
        values: list of arrays.
        strides: list of tuples of int, one stride an axis.

    Returns:
        List of NumPy arrays [N].
    """
    found = [_known_sample(value, steps) for value, steps in zip(values, strides, strict=True)]
    missing = [i for i, sample in enumerate(found) if sample is None]
    read = [
        lax.slice(values[i], (0,) * values[i].ndim, values[i].shape, strides[i]) for i in missing
    ]
    for i, sample in zip(missing, jax.device_get(read), strict=True):
        found[i] = sample.reshape(-1)
        _keep(values[i], strides[i], found[i])
    return found


def _known_sample(value, steps):
    array, known_steps, sample = _known.get(id(value), (lambda: None, None, None))
    return sample if array() is value and known_steps == steps else None


def _keep(value, steps, sample):
    key = id(value)
    # An id is given again, but not before its array is gone.
    _known[key] = (weakref.ref(value, lambda _: _known.pop(key, None)), steps, sample)
