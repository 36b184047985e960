"""Computes local attention on PyTorch, in few operations for one new token."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional

from keras_rgemma.ops.places import Places
from keras_rgemma.ops.window_attention import blocks


def default_implementation() -> str:
    return "sdpa"


def _attend(
    attend_to_parts: Callable[..., torch.Tensor],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    places: Places,
    window: int,
    history: Sequence[torch.Tensor] | None = None,
) -> torch.Tensor:
    """Computes `window_attention`, for one new token a row by matrix products."""
    if history is None or query.shape[1] != 1:
        return blocks.attend(query, key, value, places, window, history, attend_to_parts)
    batch, _, heads, size = query.shape
    kv_heads = key.shape[2]
    query_BKGH = query.reshape(batch, kv_heads, heads // kv_heads, size) * size**-0.5
    keys_BKHW, values_BKWH = history[0].permute(0, 2, 3, 1), history[1].transpose(1, 2)
    key_BKH1, value_BK1H = key.permute(0, 2, 3, 1), value.transpose(1, 2)
    # Slots fill in order, and the new token reaches all W tokens before it.
    slots_W = torch.arange(window, device=query.device)
    unfilled_BW = slots_W >= places.positions
    ring_BKGW = (query_BKGH @ keys_BKHW).float()
    ring_BKGW = ring_BKGW.masked_fill(unfilled_BW[:, None, None], -1e30)
    own_BKG1 = (query_BKGH @ key_BKH1).float()
    weights = torch.cat([ring_BKGW, own_BKG1], dim=-1).softmax(dim=-1).to(query.dtype)
    out_BKGH = weights[..., :-1] @ values_BKWH + weights[..., -1:] * value_BK1H
    return out_BKGH.reshape(batch, 1, heads, size)


def write_slots(
    ring_BWKH: torch.Tensor,
    slot_B: torch.Tensor,
    new_BKH: torch.Tensor,
    is_token_B1: torch.Tensor | None,
) -> torch.Tensor:
    """Writes one slot in each row of a ring buffer, except rows without a token."""
    return write_slots_in_place(ring_BWKH.clone(), slot_B, new_BKH, is_token_B1)


def write_slots_in_place(
    ring_BWKH: torch.Tensor,
    slot_B: torch.Tensor,
    new_BKH: torch.Tensor,
    is_token_B1: torch.Tensor | None,
) -> torch.Tensor:
    """Writes as `write_slots` does, in the memory of the ring buffer itself."""
    rows_B = torch.arange(ring_BWKH.shape[0], device=ring_BWKH.device)
    new_BKH = new_BKH.to(ring_BWKH.dtype)
    if is_token_B1 is not None:
        new_BKH = torch.where(is_token_B1[:, :, None], new_BKH, ring_BWKH[rows_B, slot_B])
    return ring_BWKH.index_put_((rows_B, slot_B), new_BKH)


def _attend_by_sdpa(
    query: torch.Tensor, parts: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]
) -> torch.Tensor:
    """Attends as `blocks.attend_by_products` does, without an array of all weights.

    Args:
        query: float [B, T, num_key_value_heads, G, K], scaled.
        parts: triples of keys, values and bool [B, T, S], or None for all keys.
    """
    batch, length, kv_heads, groups, size = query.shape
    query_BHTK = query.permute(0, 2, 3, 1, 4).reshape(batch, kv_heads * groups, length, size)
    key_BHSK, value_BHSK = (
        _for_all_heads(torch.cat([part[i] for part in parts], dim=1), groups) for i in (0, 1)
    )
    visible = [_visible_keys(query, part) for part in parts]
    out_BHTK = functional.scaled_dot_product_attention(
        query_BHTK, key_BHSK, value_BHSK, torch.cat(visible, dim=-1)[:, None], scale=1.0
    )
    return out_BHTK.unflatten(1, (kv_heads, groups)).permute(0, 3, 1, 2, 4)


def _for_all_heads(x_BSKH: torch.Tensor, groups: int) -> torch.Tensor:
    """Repeats each key/value head for its query heads: [B, H, S, K], a view for a single one."""
    x_BKSH = x_BSKH.transpose(1, 2)
    return x_BKSH[:, :, None].expand(-1, -1, groups, -1, -1).flatten(1, 2)


def _visible_keys(
    query: torch.Tensor, part: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
) -> torch.Tensor:
    key, _, visible = part
    if visible is not None:
        return visible
    return torch.ones((), dtype=torch.bool, device=query.device).expand(
        query.shape[0], query.shape[1], key.shape[1]
    )


IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {
    "sdpa": functools.partial(_attend, _attend_by_sdpa),
    "blocks": functools.partial(_attend, blocks.attend_by_products),
}
