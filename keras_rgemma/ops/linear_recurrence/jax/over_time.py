"""Divides the linear recurrence over time among devices, each of which has a part of each row.

A part turns the state `h` that enters it into `A h + e`, with A the product of its decays and e the
state in which it ends when it begins with zeros. Each device computes its A and e, gets those of
all others, [B, L] each, knows by them which state enters its own part, and computes it. Backwards
the same happens from the last part to the first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from keras_rgemma.sharding.jax.time_division import TimeDivision, tokens_before


def recurrence_over_time(
    recurrence: Callable[..., Any],
    gradient: Callable[..., Any],
    options: Hashable,
    division: TimeDivision,
    x: jax.Array,
    a: jax.Array,
    initial_state: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Computes a recurrence whose arrays devices divide over time.

    Args:
        recurrence: function of `options`, x, a and the initial state, of a part of time.
        gradient: function of `options`, a tuple of a, the initial state and h, and a pair of the
            gradients of h and of its last step; returns the gradients of x, a and initial state.
        options: hashable object.
        division: `TimeDivision` of x.
        x, a, initial_state: as of `linear_recurrence`.
    """
    return _recurrence_over_time(recurrence, gradient, options, division, x, a, initial_state)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _recurrence_over_time(
    recurrence: Callable[..., Any],
    gradient: Callable[..., Any],
    options: Hashable,
    division: TimeDivision,
    x: jax.Array,
    a: jax.Array,
    initial_state: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    return _forward(recurrence, gradient, options, division, x, a, initial_state)[0]


def _forward(
    recurrence: Callable[..., Any],
    gradient: Callable[..., Any],
    options: Hashable,
    division: TimeDivision,
    x: jax.Array,
    a: jax.Array,
    initial_state: jax.Array,
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]:
    def part(x: jax.Array, a: jax.Array, initial_BL: jax.Array) -> tuple[jax.Array, jax.Array]:
        _, ended_BL = recurrence(options, x, a, jnp.zeros_like(initial_BL))
        entering_BL, last_BL = _entering(a, ended_BL, initial_BL, division)
        h_BTL, _ = recurrence(options, x, a, entering_BL)
        return h_BTL, last_BL

    letters = ("BTL", "BTL", "BL")
    h_BTL, last_BL = division.run(part, letters, ("BTL", "BL"), x, a, initial_state)
    return (h_BTL, last_BL), (a, initial_state, h_BTL)


def _backward(
    recurrence: Callable[..., Any],
    gradient: Callable[..., Any],
    options: Hashable,
    division: TimeDivision,
    residuals: tuple[jax.Array, jax.Array, jax.Array],
    gradients: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    def part(
        a: jax.Array,
        initial_BL: jax.Array,
        h_BTL: jax.Array,
        h_gradient: jax.Array,
        last_gradient: jax.Array,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        before_BL = tokens_before(h_BTL, 1, division, initial_BL[:, None])[:, 0]
        residuals, none = (a, before_BL, h_BTL), jnp.zeros_like(last_gradient)
        _, _, ended_BL = gradient(options, residuals, (h_gradient, none))
        entering_BL, initial_gradient = _entering(a, ended_BL, last_gradient, division, True)
        x_gradient, a_gradient, _ = gradient(options, residuals, (h_gradient, entering_BL))
        return x_gradient, a_gradient, initial_gradient

    letters = ("BTL", "BL", "BTL", "BTL", "BL")
    return division.run(part, letters, ("BTL", "BTL", "BL"), *residuals, *gradients)


_recurrence_over_time.defvjp(_forward, _backward)


def _entering(
    a: jax.Array,
    ended_BL: jax.Array,
    initial_BL: jax.Array,
    division: TimeDivision,
    reverse: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Computes what enters the part of this device, and what leaves the last part.

    Args:
        a: float [B, T, L], the decays of the part.
        ended_BL: what leaves the part when zeros enter it.
        initial_BL: what enters the first part; in reverse, the last.
        division: `TimeDivision`.
        reverse: bool.

    Returns:
        A pair of float32 [B, L].
    """
    decay_BL = jnp.prod(a, axis=1, dtype="float32")
    parts = lax.all_gather((decay_BL, ended_BL), division.axis)  # a leading axis for the devices

    def step(state_BL: jax.Array, part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        decay_BL, ended_BL = part
        return decay_BL * state_BL + ended_BL, state_BL

    leaving_BL, entering = lax.scan(step, initial_BL, parts, reverse=reverse)
    return entering[lax.axis_index(division.axis)], leaving_BL
