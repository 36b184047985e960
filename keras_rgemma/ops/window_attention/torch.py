"""Computes local attention on PyTorch, in few operations for one new token."""

import torch

from keras_rgemma.ops.window_attention import blocks


def default_implementation():
    return "blocks"


def attend(query, key, value, places, window, history=None):
    """Computes `window_attention`, for one new token a row by matrix products."""
    if history is None or query.shape[1] != 1:
        return blocks.attend(query, key, value, places, window, history)
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


def write_slots(ring_BWKH, slot_B, new_BKH, is_token_B1):
    """Writes one slot in each row of a ring buffer, except rows without a token."""
    return write_slots_in_place(ring_BWKH.clone(), slot_B, new_BKH, is_token_B1)


def write_slots_in_place(ring_BWKH, slot_B, new_BKH, is_token_B1):
    """Writes as `write_slots` does, in the memory of the ring buffer itself."""
    rows_B = torch.arange(ring_BWKH.shape[0], device=ring_BWKH.device)
    new_BKH = new_BKH.to(ring_BWKH.dtype)
    if is_token_B1 is not None:
        new_BKH = torch.where(is_token_B1[:, :, None], new_BKH, ring_BWKH[rows_B, slot_B])
    return ring_BWKH.index_put_((rows_B, slot_B), new_BKH)


IMPLEMENTATIONS = {"blocks": attend}
