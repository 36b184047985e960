"""Divides local attention over time among devices, each of which has a part of each row.

A query sees at most W tokens back, so each device gets as many keys and values from the devices to
its left. They stand in a ring buffer, as if the row had been read part by part.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from keras_rgemma.ops.bounds import at_least
from keras_rgemma.ops.places import Places
from keras_rgemma.ops.tokens_at import tokens_at
from keras_rgemma.sharding.jax.time_division import time_division, tokens_before


def in_parts(attend: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Makes a function as `window_attention` that computes each part of time on its device.

    Args:
        attend: as `window_attention`, for whole rows.
    """

    @functools.wraps(attend)
    def run(
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        places: Places,
        window: int,
        history: Sequence[jax.Array] | None = None,
    ) -> jax.Array:
        division = time_division("BTHK", query.shape)
        if division is None:
            return attend(query, key, value, places, window, history)

        def part(
            query: jax.Array,
            key: jax.Array,
            value: jax.Array,
            positions: jax.Array,
            *before: jax.Array,
        ) -> jax.Array:
            rings = [
                _ring(tokens_before(x, window, division, first), positions)
                for x, first in zip((key, value), before or (None, None), strict=True)
            ]
            places = Places(positions, positions >= 0, positions == 0, None, None)
            return attend(query, key, value, places, window, rings)

        before = [_in_order(ring, places.positions) for ring in history or ()]
        arrays = query, key, value, places.positions, *before
        letters = "BTHK", "BTGK", "BTGK", "BT", *["BWGK"] * len(before)
        return division.run(part, letters, "BTHK", *arrays)

    return run


def _ring(before: jax.Array, positions: jax.Array) -> jax.Array:
    """Returns the ring buffer of the keys or values [B, W, G, K] before a part of a row.

    The key of position p goes to slot p % W.
    """
    return tokens_at(before, _slots(before, positions, -1))


def _in_order(ring: jax.Array, positions: jax.Array) -> jax.Array:
    """Returns the keys or values of a ring buffer [B, W, G, K] in the order of time."""
    return tokens_at(ring, _slots(ring, positions, 1))


def _slots(x: jax.Array, positions: jax.Array, sign: int) -> jax.Array:
    window = x.shape[1]
    num_tokens_B1 = at_least(positions[:, :1], 0)
    return (jnp.arange(window, dtype="int32")[None] + sign * num_tokens_B1) % window
