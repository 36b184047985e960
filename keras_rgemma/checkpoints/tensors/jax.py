"""Gives variables their arrays on JAX."""

from __future__ import annotations

import functools
from typing import Any

import jax
import keras
import numpy as np

from keras_rgemma.checkpoints.tensors.arrays import aligned_in_rows, in_rows, is_turned_half
from keras_rgemma.keras_internals import variables as internals
from keras_rgemma.keras_internals.jax import device_array, initialize_turned
from keras_rgemma.types import Shape


def give(variable: keras.Variable, array: np.ndarray) -> None:
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

    def value(shape: Shape, dtype: str) -> jax.Array:
        # Keras alone would have it copied twice.
        rows = aligned_in_rows(array) if is_on_cpu else in_rows(array)
        return keras.ops.convert_to_tensor(device_array(rows), dtype=dtype)

    internals.initialize(variable, value)


def _in_shards(
    array: np.ndarray, shape: Shape, dtype: str, sharding: jax.sharding.Sharding
) -> jax.Array:
    """Makes an array on several devices, of which each gets its part straight from the file."""

    def part(index: Any) -> np.ndarray:
        return in_rows(array[index]).astype(dtype, copy=False)

    return jax.make_array_from_callback(shape, sharding, part)
