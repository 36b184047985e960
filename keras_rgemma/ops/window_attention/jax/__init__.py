"""Computes local attention on JAX."""

import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import keras

from keras_rgemma.ops.window_attention import blocks
from keras_rgemma.ops.window_attention.jax.over_time import in_parts


def default_implementation() -> str:
    return "blocks"


def write_slots(
    ring_BWKH: jax.Array, slot_B: jax.Array, new_BKH: jax.Array, is_token_B1: jax.Array | None
) -> jax.Array:
    """Writes one slot in each row of a ring buffer, except rows without a token."""
    batch, window = ring_BWKH.shape[:2]
    if is_token_B1 is not None:
        slot_B = jnp.where(is_token_B1[:, 0], slot_B, window)  # out of range: not written
    new_BKH = new_BKH.astype(ring_BWKH.dtype)
    if keras.distribution.distribution() is not None:
        # The compiler then knows that each device writes into its own rows alone.
        write = lambda ring, slot, new: ring.at[slot].set(new, mode="drop")  # noqa: E731
        return jax.vmap(write)(ring_BWKH, slot_B, new_BKH)
    rows_B = jnp.arange(batch)
    return ring_BWKH.at[rows_B, slot_B].set(
        new_BKH, mode="drop", unique_indices=True, indices_are_sorted=True
    )


def _splash(*args: Any) -> jax.Array:
    # Imported at the first use: Pallas for TPUs takes a moment that other devices need not wait.
    return importlib.import_module("keras_rgemma.ops.window_attention.jax.splash").attend(*args)


IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {
    "blocks": in_parts(blocks.attend),
    "splash": in_parts(_splash),
}
