"""Runs blocks of decode steps on PyTorch, which writes ring buffers in place."""

from __future__ import annotations

import keras
import torch

from keras_rgemma.generation.decode import NO_TOKEN, DecodeState, decode_step
from keras_rgemma.generation.model import BoundModel, Sampler
from keras_rgemma.state.records import AttentionState, LayerState
from keras_rgemma.types import Tree


def decode_block(
    model: BoundModel,
    sampler: Sampler,
    stop_token_ids: torch.Tensor,
    state: DecodeState,
    size: int | torch.Tensor,
) -> tuple[torch.Tensor, DecodeState]:
    """Writes tokens as `generation.decode.decode_block` does; returns [N, B], N at most `size`."""
    # The ring buffers of the argument belong to the caller; the copies belong to this block.
    layers = tuple(map(_own, state.model.layers))
    state = state._replace(model=state.model._replace(layers=layers))
    has_begun = bool((state.model.num_tokens > 0).all())
    ended = state.ended.tolist()
    columns = []
    while len(columns) < size and not all(ended):
        flags = {"all_active": not any(ended), "has_begun": has_begun}
        with model.decoding.context():
            state, output = decode_step(model.decoding, sampler, stop_token_ids, state, **flags)
            has_begun, ended = True, state.ended.tolist()
        columns.append(output)
    if not columns:
        columns = [torch.full_like(state.last_token_ids, NO_TOKEN)]
    return keras.tree.map_structure(_normal, (torch.stack(columns), state))


def with_plain_strides(structure: Tree) -> Tree:
    """Gives tensors the strides of new tensors; compiled functions are made for given strides."""

    def plain(x: torch.Tensor) -> torch.Tensor:
        if x.stride() == x.new_empty(x.shape).stride():
            return x
        return x.clone(memory_format=torch.contiguous_format)

    return keras.tree.map_structure(plain, structure)


def _own(layer: LayerState) -> LayerState:
    """Copies ring buffers; other arrays get the strides that they have in later steps."""
    if isinstance(layer, AttentionState):
        return AttentionState(layer.keys.clone(), layer.values.clone())
    return with_plain_strides(layer)


def _normal(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a tensor that stays, and that can take part in a gradient later.

    A tensor of inference cannot, and one on a GPU may be a buffer of the next step.
    """
    return tensor.clone() if tensor.is_inference() or tensor.is_cuda else tensor
