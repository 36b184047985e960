"""Blocks of decode steps on PyTorch, with the ring buffers written in place."""

import keras
import torch

from keras_rgemma.generation.decode import NO_TOKEN, decode_step
from keras_rgemma.state.records import AttentionState


def decode_block(model, sampler, stop_token_ids, state, size):
    """Does what `generation.decode.decode_block` does; the tokens are [N, B], N at most `size`."""
    with torch.inference_mode():
        tokens, state = _decode_block(model, sampler, stop_token_ids, state, int(size))
    # What is made in that mode cannot take part in a gradient later; copies of it can.
    return tokens, keras.tree.map_structure(torch.clone, state)


def _decode_block(model, sampler, stop_token_ids, state, size):
    # The ring buffers that come in belong to the caller; these belong to this block.
    layers = tuple(map(_own_rings, state.model.layers))
    state = state._replace(model=state.model._replace(layers=layers))
    model = model._replace(step=model.step_in_place)
    has_begun = bool((state.model.num_tokens > 0).all())
    ended = state.ended.tolist()
    columns = []
    while len(columns) < size and not all(ended):
        all_go_on = not any(ended)
        state, written = decode_step(model, sampler, stop_token_ids, state, all_go_on, has_begun)
        columns.append(written)
        has_begun, ended = True, state.ended.tolist()
    if not columns:
        columns = [torch.full_like(state.last_token_ids, NO_TOKEN)]
    return torch.stack(columns), state


def _own_rings(layer):
    if isinstance(layer, AttentionState):
        return AttentionState(layer.keys.clone(), layer.values.clone())
    return layer
