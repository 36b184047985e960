"""Gives variables their arrays on JAX."""

import functools

import jax
import keras

from keras_rgemma.checkpoints.tensors.arrays import aligned_in_rows, in_rows, is_turned_half
from keras_rgemma.keras_internals import variables as internals
from keras_rgemma.keras_internals.jax import device_array, initialize_turned


def give(variable, array):
    """Gives a variable its first value: see `keras_rgemma.checkpoints.tensors`."""
    if keras.distribution.distribution() is not None:
        internals.initialize_with(variable, functools.partial(_in_shards, array))
        return
    is_on_cpu = jax.default_backend() == "cpu"  # where products take matrices as files have them
    if (
        is_on_cpu
        and is_turned_half(array, variable.dtype)
        and initialize_turned(variable, aligned_in_rows(array.T))
    ):
        return

    def value(shape, dtype):
        # Keras alone would have it copied twice.
        rows = aligned_in_rows(array) if is_on_cpu else in_rows(array)
        return keras.ops.convert_to_tensor(device_array(rows), dtype=dtype)

    internals.initialize(variable, value)


def _in_shards(array, shape, dtype, sharding):
    """Makes an array on several devices, of which each gets its part straight from the file."""

    def part(index):
        return in_rows(array[index]).astype(dtype, copy=False)

    return jax.make_array_from_callback(shape, sharding, part)
