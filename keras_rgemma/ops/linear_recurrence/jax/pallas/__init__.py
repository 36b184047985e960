"""Computes the linear recurrence on TPUs and GPUs in one pass over memory, and its gradient."""

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from keras_rgemma.ops.jax import only_on
from keras_rgemma.ops.linear_recurrence.jax.loops import associative
from keras_rgemma.ops.linear_recurrence.jax.over_time import recurrence_over_time
from keras_rgemma.ops.linear_recurrence.jax.pallas import gpu, tpu
from keras_rgemma.ops.linear_recurrence.jax.pallas.devices import mesh_in_force, on_shards
from keras_rgemma.sharding.jax.time_division import time_division


class Options(NamedTuple):
    """Holds what a program is made for, see `linear_recurrence` and `on_shards`."""

    kernels: ModuleType
    interpret: bool
    x_dtype: str
    mesh: jax.sharding.Mesh | None
    batch_axis: str | None


def linear_recurrence(
    x: jax.Array, a: jax.Array, initial_state: jax.Array, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Computes `linear_recurrence` on TPUs; reads x and a as they are, bfloat16 or float32.

    With a `keras.distribution` each device runs the kernels on its rows of B, and channels of L,
    without communication; where it divides T, too, as `over_time` says. Arrays that are sharded by
    other means need a `jax.shard_map` around the call, as JAX says. Compiled for TPUs; never run on
    one.

    Args:
        x, a: float [B, T, L].
        initial_state: float32 [B, L].
        interpret: bool, runs the kernels in Pallas' interpreter: slowly, and on any device.

    Raises:
        ValueError: the program is compiled for another device, without `interpret`.
    """
    return _on_kernels(tpu, x, a, initial_state, interpret)


def triton(
    x: jax.Array, a: jax.Array, initial_state: jax.Array, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Computes `linear_recurrence` on GPUs of NVIDIA; the same otherwise."""
    return _on_kernels(gpu, x, a, initial_state, interpret)


def _on_kernels(
    kernels: ModuleType, x: jax.Array, a: jax.Array, initial_state: jax.Array, interpret: bool
) -> tuple[jax.Array, jax.Array]:
    if 0 in x.shape:  # there is nothing for a kernel to do
        return associative(x, a, initial_state)
    x, a = (v if v.dtype == jnp.bfloat16 else v.astype("float32") for v in (x, a))
    options = Options(kernels, interpret, x.dtype.name, *mesh_in_force())
    division = time_division("BTL", x.shape)
    if division is None:
        return _recurrence(options, x, a, initial_state)
    options = options._replace(mesh=None)  # of one device: the division is made around them
    return recurrence_over_time(_recurrence, _backward, options, division, x, a, initial_state)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _recurrence(
    options: Options, x: jax.Array, a: jax.Array, initial_state: jax.Array
) -> tuple[jax.Array, jax.Array]:
    if x.shape[1] == 1:
        h_BL = a[:, 0].astype("float32") * initial_state + x[:, 0]
        return h_BL[:, None], h_BL
    return _run(options.kernels.forward, options, x, a, initial_state)


def _forward(
    options: Options, x: jax.Array, a: jax.Array, initial_state: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]:
    h_BTL, last_BL = _recurrence(options, x, a, initial_state)
    return (h_BTL, last_BL), (a, initial_state, h_BTL)


def _backward(
    options: Options,
    residuals: tuple[jax.Array, jax.Array, jax.Array],
    gradients: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    a, initial_state, h_BTL = residuals
    h_gradient, last_gradient = gradients
    arrays = (h_gradient, a, h_BTL, initial_state, last_gradient)
    return _run(options.kernels.backward, options, *arrays)


_recurrence.defvjp(_forward, _backward)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run(kernel: Callable[..., Any], options: Options, *arrays: jax.Array) -> Any:
    if not options.interpret:
        choice = ("pallas", "tpu") if options.kernels is tpu else ("triton", "cuda")
        first = only_on(arrays[0], "linear_recurrence", *choice)
        arrays = (first, *arrays[1:])
    return on_shards(functools.partial(kernel, options), options.mesh, options.batch_axis, *arrays)
