"""Computes local attention in blocks of queries, for any backend, without a [T, T] mask."""

from collections.abc import Callable, Sequence

from keras import ops

from keras_rgemma.ops.bounds import at_least, at_most
from keras_rgemma.ops.places import Places
from keras_rgemma.ops.time_range import time_range
from keras_rgemma.ops.tokens_at import tokens_at
from keras_rgemma.types import Tensor

BLOCK = 256


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    places: Places,
    window: int,
    history: Sequence[Tensor] | None = None,
    attend_to_parts: Callable[..., Tensor] | None = None,
) -> Tensor:
    """Computes `window_attention` in blocks of queries, or at once for few queries.

    Args:
        query, key, value, places, window, history: as of `window_attention`.
        attend_to_parts: function as `attend_by_products`, which is its default.
    """
    run = attend_to_parts or attend_by_products
    heads, size = query.shape[2], query.shape[3]
    kv_heads = key.shape[2]
    # The queries that share a key/value head become rows of one product.
    query = ops.reshape(query, (-1, ops.shape(query)[1], kv_heads, heads // kv_heads, size))
    query = query * ops.cast(size**-0.5, query.dtype)
    length = query.shape[1]
    block = min(BLOCK, -(-window // 32) * 32)
    if length == 1 and history is not None:
        out = _attend_one(run, query, key, value, places, window, history)
    elif length is not None and length <= block:
        out = _attend_at_once(run, query, key, value, places.positions, window, history)
    else:
        out = _attend_in_blocks(run, query, key, value, places.positions, window, history, block)
    return ops.reshape(out, (-1, ops.shape(out)[1], heads, size))


def _attend_one(
    run: Callable[..., Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    places: Places,
    window: int,
    history: Sequence[Tensor],
) -> Tensor:
    """Attends from one new token to the unordered ring buffer and to itself."""
    # Slots fill in order, and the new token reaches all W tokens before it.
    slots_1W = ops.arange(window, dtype="int32")[None]
    parts = [(*history, (slots_1W < places.positions)[:, None]), (key, value, None)]
    return run(query, parts)


def _visible(query_index: Tensor, first_visible: Tensor, key_index: Tensor) -> Tensor:
    """Marks the keys from the first visible key up to the query itself, bool [..., T, S]."""
    key_index = ops.expand_dims(key_index, -2)
    at_most = key_index <= ops.expand_dims(query_index, -1)
    return ops.logical_and(at_most, key_index >= ops.expand_dims(first_visible, -1))


def _reach(positions: Tensor, window: int) -> Tensor:
    """Counts the keys to the left that a query sees, int32 [B, T]. A pad sees itself alone."""
    return at_most(at_least(positions, 0), window)


def _attend_at_once(
    run: Callable[..., Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    positions: Tensor,
    window: int,
    history: Sequence[Tensor] | None,
) -> Tensor:
    """Attends from one block of queries to the unordered ring buffer and to the row itself."""
    index_T = ops.arange(query.shape[1], dtype="int32")
    index_BT = ops.zeros_like(positions) + index_T
    first_BT = index_BT - _reach(positions, window)
    parts = [(key, value, _visible(index_BT, first_BT, index_BT))]
    if history is not None:
        slots_BW = _slot_indices(positions, window)
        parts.insert(0, (*history, _visible(index_BT, first_BT, slots_BW)))
    return run(query, parts)


def _slot_indices(positions: Tensor, window: int) -> Tensor:
    """Computes the index of each slot's key, counted from the row's first token, int32 [B, W].

    Indices are negative, -1 for the latest key. Slots that were never filled get indices further
    back than any query reaches.
    """
    num_tokens_B1 = at_least(positions[:, :1], 0)
    slots_1W = ops.arange(window, dtype="int32")[None]
    return -1 - (num_tokens_B1 - 1 - slots_1W) % window


def attend_by_products(
    query: Tensor, parts: Sequence[tuple[Tensor, Tensor, Tensor | None]]
) -> Tensor:
    """Attends to the keys of all parts with one softmax, without a copy of all keys together.

    Parts are triples of keys, values and bool [B, T, S], the keys that a query sees; None for all.
    """
    logits = []
    for key, _, visible in parts:
        part = ops.cast(ops.einsum("btkgh,bskh->bkgts", query, key), "float32")
        if visible is not None:
            part = ops.where(visible[:, None, None], part, -1e30)
        logits.append(part)
    weights = ops.softmax(ops.concatenate(logits, axis=-1), axis=-1)
    weights = ops.cast(weights, query.dtype)
    out, start = 0, 0
    for key, value, _ in parts:
        size = key.shape[1]
        out = out + ops.einsum("bkgts,bskh->btkgh", weights[..., start : start + size], value)
        start += size
    return out


def _attend_in_blocks(
    run: Callable[..., Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    positions: Tensor,
    window: int,
    history: Sequence[Tensor] | None,
    block: int,
) -> Tensor:
    """Attends in blocks of C queries, each to the keys of its block and of the blocks in reach."""
    length = query.shape[1]
    if history is None and length is not None:
        window = min(window, length - 1)
    num_earlier = -(-window // block)
    if history is None:
        before = [(0, 0), (num_earlier * block, 0), (0, 0), (0, 0)]
        key, value = ops.pad(key, before), ops.pad(value, before)
    else:
        key = after_history(history[0], key, positions, window, num_earlier * block)
        value = after_history(history[1], value, positions, window, num_earlier * block)
    blocks = -(-ops.shape(query)[1] // block)
    padding = blocks * block - ops.shape(query)[1]
    query_N = _to_blocks(query, padding, block)
    reach_N = _to_blocks(_reach(positions, window), padding, block)
    key_N = _with_earlier_blocks(_to_blocks(key, padding, block), num_earlier)
    value_N = _with_earlier_blocks(_to_blocks(value, padding, block), num_earlier)
    # Indices count from the first key of the block's span.
    index_C = ops.arange(block, dtype="int32") + num_earlier * block
    span_S = ops.arange((num_earlier + 1) * block, dtype="int32")
    visible = _visible(index_C + ops.zeros_like(reach_N), index_C - reach_N, span_S)
    merged = lambda x: ops.reshape(x, (-1, *x.shape[2:]))  # noqa: E731
    out = run(merged(query_N), [(merged(key_N), merged(value_N), merged(visible))])
    out = ops.reshape(out, (-1, blocks * block, *out.shape[2:]))
    return out[:, : ops.shape(query)[1]]


def after_history(ring: Tensor, row: Tensor, positions: Tensor, window: int, space: int) -> Tensor:
    """Joins pads, the ring buffer in the order of time (`space` together) and the row."""
    num_tokens_B1 = at_least(positions[:, :1], 0)
    slots_BW = (num_tokens_B1 + ops.arange(window, dtype="int32")[None]) % window
    ordered = tokens_at(ring, slots_BW)
    ordered = ops.pad(ordered, [(0, 0), (space - window, 0), (0, 0), (0, 0)])
    return ops.concatenate([ordered, row], axis=1)


def _to_blocks(x: Tensor, padding: int | Tensor, block: int) -> Tensor:
    """Splits [B, T, ...] into blocks [B, N, C, ...], with `padding` zeros after the last token."""
    x = ops.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (len(x.shape) - 2))
    return ops.reshape(x, (-1, ops.shape(x)[1] // block, block, *x.shape[2:]))


def _with_earlier_blocks(x: Tensor, num_earlier: int) -> Tensor:
    """Joins each block to the E earlier blocks: [B, E + N, C, ...] -> [B, N, (E + 1) * C, ...]."""
    count = ops.shape(x)[1] - num_earlier
    return ops.concatenate([time_range(x, i, count) for i in range(num_earlier + 1)], axis=2)
