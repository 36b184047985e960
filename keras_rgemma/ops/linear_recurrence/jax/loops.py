"""Computes the linear recurrence by operations of JAX, in float32."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from keras_rgemma.ops.linear_recurrence.jax.over_time import recurrence_over_time
from keras_rgemma.sharding.jax.time_division import time_division


def _run_loop(
    x: jax.Array, a: jax.Array, initial_state: jax.Array, reverse: bool
) -> tuple[jax.Array, jax.Array]:
    """Runs the recurrence step by step.

    Forwards `h_t = a_t * h_{t-1} + x_t`; in reverse `h_t = c_t + x_t`, `c_{t+1} = a_t * h_t`.
    """
    length = x.shape[1]

    def step(i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        carried_BL, out_BTL = carry
        t = length - 1 - i if reverse else i
        a_BL = lax.dynamic_index_in_dim(a, t, axis=1, keepdims=False)
        x_BL = lax.dynamic_index_in_dim(x, t, axis=1, keepdims=False)
        h_BL = carried_BL + x_BL if reverse else a_BL * carried_BL + x_BL
        out_BTL = lax.dynamic_update_index_in_dim(out_BTL, h_BL, t, axis=1)
        return (a_BL * h_BL if reverse else h_BL), out_BTL

    last_BL, out_BTL = lax.fori_loop(0, length, step, (initial_state, jnp.empty_like(x)))
    return out_BTL, last_BL


def _run_associative(
    x: jax.Array, a: jax.Array, initial_state: jax.Array, reverse: bool
) -> tuple[jax.Array, jax.Array]:
    """Runs the recurrence by `lax.associative_scan`: log(T) passes over whole arrays."""

    def combine(
        left: tuple[jax.Array, jax.Array], right: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        return left[0] * right[0], right[0] * left[1] + right[1]

    if reverse:
        later_a = jnp.concatenate([a[:, 1:], jnp.ones_like(a[:, :1])], axis=1)
        decay, h_BTL = lax.associative_scan(combine, (later_a, x), axis=1, reverse=True)
        h_BTL = h_BTL + decay * initial_state[:, None]
        return h_BTL, a[:, 0] * h_BTL[:, 0]
    decay, h_BTL = lax.associative_scan(combine, (a, x), axis=1)
    h_BTL = h_BTL + decay * initial_state[:, None]
    return h_BTL, h_BTL[:, -1]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _recurrence(
    run: Callable[..., Any], x: jax.Array, a: jax.Array, initial_state: jax.Array
) -> tuple[jax.Array, jax.Array]:
    if x.shape[1] == 1:
        h_BL = a[:, 0] * initial_state + x[:, 0]
        return h_BL[:, None], h_BL
    return run(x, a, initial_state, False)


def _forward(
    run: Callable[..., Any], x: jax.Array, a: jax.Array, initial_state: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]:
    h_BTL, last_BL = _recurrence(run, x, a, initial_state)
    return (h_BTL, last_BL), (a, initial_state, h_BTL)


def _backward(
    run: Callable[..., Any],
    residuals: tuple[jax.Array, jax.Array, jax.Array],
    gradients: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    a, initial_state, h_BTL = residuals
    h_gradient, last_gradient = gradients
    x_gradient, initial_gradient = run(h_gradient, a, last_gradient, True)
    before_BTL = jnp.concatenate([initial_state[:, None], h_BTL[:, :-1]], axis=1)
    return x_gradient, x_gradient * before_BTL, initial_gradient


_recurrence.defvjp(_forward, _backward)


def loop(x: jax.Array, a: jax.Array, initial_state: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Computes `linear_recurrence` step by step."""
    return _in_parts(_run_loop, x.astype("float32"), a.astype("float32"), initial_state)


def associative(
    x: jax.Array, a: jax.Array, initial_state: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Computes `linear_recurrence` in parallel."""
    return _in_parts(_run_associative, x.astype("float32"), a.astype("float32"), initial_state)


def _in_parts(
    run: Callable[..., Any], x: jax.Array, a: jax.Array, initial_state: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Computes the recurrence by a function `run`, on each device its part of time."""
    division = time_division("BTL", x.shape)
    if division is None:
        return _recurrence(run, x, a, initial_state)
    return recurrence_over_time(_recurrence, _backward, run, division, x, a, initial_state)
