"""Runs blocks of decode steps on PyTorch, which writes ring buffers in place."""

import keras
import torch

from keras_rgemma.generation.decode import NO_TOKEN, decode_step
from keras_rgemma.state.records import AttentionState


def decode_block(model, sampler, stop_token_ids, state, size):
    """Writes tokens as `generation.decode.decode_block` does; returns [N, B], N at most `size`."""
    # The ring buffers of the argument belong to the caller; the copies belong to this block.
    layers = tuple(map(_copy_rings, state.model.layers))
    state = state._replace(model=state.model._replace(layers=layers))
    with torch.inference_mode():
        tokens, state = _decode_block(model, sampler, stop_token_ids, state, int(size))
    return tokens, keras.tree.map_structure(_normal, state)


def _decode_block(model, sampler, stop_token_ids, state, size):
    model = model._replace(step=model.step_in_place)
    has_begun = bool((state.model.num_tokens > 0).all())
    ended = state.ended.tolist()
    columns = []
    while len(columns) < size and not all(ended):
        all_active = not any(ended)
        state, output = decode_step(model, sampler, stop_token_ids, state, all_active, has_begun)
        columns.append(output)
        has_begun, ended = True, state.ended.tolist()
    if not columns:
        columns = [torch.full_like(state.last_token_ids, NO_TOKEN)]
    return torch.stack(columns), state


def _copy_rings(layer):
    if isinstance(layer, AttentionState):
        return AttentionState(layer.keys.clone(), layer.values.clone())
    return layer


def _normal(tensor):
    """Returns a tensor that can take part in a gradient later, as those of inference cannot."""
    return tensor.clone() if tensor.is_inference() else tensor
