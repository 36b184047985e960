"""Computes local attention on TPUs by the kernels of JAX's splash attention."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash

from keras_rgemma.ops.jax import only_on
from keras_rgemma.ops.places import Places
from keras_rgemma.ops.window_attention import blocks

LANES = 128  # the blocks of a kernel are multiples of it
LARGEST = 512  # block
PAD, UNFILLED = -1, -2  # documents that no query of a token belongs to


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    places: Places,
    window: int,
    history: Sequence[jax.Array] | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Computes `window_attention`; one new token a row as `blocks.attend` does, without a kernel.

    Blocks that no query sees are neither read nor computed, and no logits are written to memory.
    Arrays that are sharded need a `jax.shard_map` around the call, as JAX says. Compiled for TPUs;
    never run on one.

    Args:
        query, key, value, places, window, history: as of `window_attention`.
        interpret: bool, runs the kernels in Pallas' interpreter: slowly, and on any device.

    Raises:
        ValueError: the program is compiled for another device than a TPU, without `interpret`.
    """
    length = query.shape[1]
    if length == 1:
        return blocks.attend(query, key, value, places, window, history)
    documents_BT = _documents(places.positions)
    if not interpret:
        documents_BT = only_on(documents_BT, "window_attention", "splash", "tpu")
    seen_BS, space = documents_BT, 0
    if history is not None:
        space = math.ceil(window / LANES) * LANES
        key, value = (
            blocks.after_history(ring, row, places.positions, window, space)
            for ring, row in zip(history, (key, value), strict=True)
        )
        before_BS = _documents_before(places.positions, window, space)
        seen_BS = jnp.concatenate([before_BS, documents_BT], axis=1)
    padding = -length % LANES
    query, key, value = (_heads_first(x, padding) for x in (query, key, value))
    pads = [(0, 0), (0, padding)]
    documents_BT, seen_BS = (jnp.pad(x, pads, constant_values=PAD) for x in (documents_BT, seen_BS))
    kernel = _kernel(query.shape, key.shape[2], window, space, interpret)
    query *= query.shape[-1] ** -0.5
    out = jax.vmap(kernel)(query, key, value, splash.SegmentIds(documents_BT, seen_BS))
    return out.swapaxes(1, 2)[:, :length]


def _documents(positions: jax.Array) -> jax.Array:
    """Numbers the documents of a row, int32 [B, T]; 0 goes on from the history."""
    number_BT = jnp.cumsum(positions == 0, axis=1, dtype="int32")
    return jnp.where(positions >= 0, number_BT, PAD)


def _documents_before(positions: jax.Array, window: int, space: int) -> jax.Array:
    """Numbers the document of the keys before a row, int32 [B, space], the latest key last."""
    filled_B1 = jnp.clip(positions[:, :1], 0, window)
    age_1S = space - jnp.arange(space, dtype="int32")[None]
    return jnp.where(age_1S <= filled_B1, 0, UNFILLED)


def _heads_first(x_BTHK: jax.Array, padding: int) -> jax.Array:
    """Returns [B, H, T, K] with zeros after the last token."""
    return jnp.pad(x_BTHK.swapaxes(1, 2), [(0, 0), (0, 0), (0, padding), (0, 0)])


def _kernel(
    query_shape: Sequence[int], num_keys: int, window: int, space: int, interpret: bool
) -> Callable[..., Any]:
    """Makes the kernel of one row: a function of query, key, value and `SegmentIds`."""
    _, heads, length, _ = query_shape
    block = math.gcd(length, num_keys, LARGEST)
    one_head = splash.LocalMask((length, num_keys), (window, 0), offset=space)
    return splash.make_splash_mha(
        splash.MultiHeadMask([one_head] * heads),
        block_sizes=splash.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
