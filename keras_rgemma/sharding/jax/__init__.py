"""Moves arrays between host and devices, shard by shard, and numbers between processes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import keras
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

__all__ = [
    "Array",
    "alone_on_host",
    "common_seed",
    "describe",
    "gathered",
    "on_devices",
    "on_host",
    "process_count",
    "process_index",
    "wait_for_all",
]


def process_count() -> int:
    """Returns the number of processes that compute together, int."""
    return jax.process_count()


def process_index() -> int:
    """Returns the number of this process, int."""
    return jax.process_index()


def wait_for_all(name: str) -> None:
    """Waits until every process has come to the point of that name, str."""
    multihost_utils.sync_global_devices(name)


def common_seed() -> int:
    """Draws a number that is the same in every process, int."""
    return int(multihost_utils.broadcast_one_to_all(np.uint32(np.random.randint(1 << 31))))


def gathered(number: int) -> list[int]:
    """Returns the numbers that the processes pass here, a list of ints below 2 ** 32."""
    return np.atleast_1d(multihost_utils.process_allgather(np.uint32(number))).tolist()


def on_devices(array: np.ndarray, dtype: str, sharding: jax.sharding.Sharding) -> jax.Array:
    """Makes an array on several devices from one of NumPy; each device gets its part alone.

    Args:
        array: NumPy array, which may be one of the pages of a file.
        dtype: str.
        sharding: `jax.sharding.Sharding`.
    """

    def part(index: Any) -> np.ndarray:
        return np.asarray(array[index], dtype, order="C")  # no copy where none is needed

    return jax.make_array_from_callback(array.shape, sharding, part)


def on_host(array: jax.Array) -> jax.Array | np.ndarray:
    """Returns an array of several devices in a form that goes to the host and leaves no copy there.

    JAX keeps the host's copy of an array with several shards as long as the array. With several
    processes all of them must call this together, and get a NumPy array.

    Args:
        array: `jax.Array`.
    """
    if not array.is_fully_addressable:
        return multihost_utils.process_allgather(array, tiled=True)
    shards = [shard.data for shard in array.addressable_shards]
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, shards)


def describe(array: Any, variable: keras.Variable) -> jax.ShapeDtypeStruct:
    """Describes an array of a file, to be read onto the devices of a variable.

    Args:
        array: object with `shape` and `dtype`; of another shape than the variable's, each device
            gets all of it.
        variable: `keras.Variable`.

    Returns:
        `jax.ShapeDtypeStruct`.
    """
    sharding = variable.value.sharding
    if tuple(array.shape) != tuple(variable.shape) and isinstance(sharding, NamedSharding):
        sharding = NamedSharding(sharding.mesh, PartitionSpec())
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)


@contextlib.contextmanager
def alone_on_host() -> Iterator[None]:
    """Computes on a CPU of this process, without the `keras.distribution` in force."""
    before = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            yield
    finally:
        keras.distribution.set_distribution(before)
