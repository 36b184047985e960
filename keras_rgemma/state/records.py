"""Defines the memory of a model: records of arrays of fixed shape.

All leaves have the batch as their first axis, so that a state can be repeated, sliced, gathered
(beam search) and concatenated with `keras.tree.map_structure` and no code per record.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import keras
from keras import ops

from keras_rgemma.config import RECURRENT, RGemmaConfig
from keras_rgemma.sharding.activations import constrain
from keras_rgemma.types import Tensor


class RecurrentState(NamedTuple):
    """Holds the state of a recurrent block.

    Attributes:
        recurrence: float32 [B, L], the hidden state h of the RG-LRU after the last token.
        conv: compute dtype [B, conv_width - 1, L], the last inputs of the convolution, oldest
            first, zeros before the beginning of the document.
    """

    recurrence: Tensor
    conv: Tensor


class AttentionState(NamedTuple):
    """Holds the state of a local attention block: a ring buffer of W keys and values.

    Attributes:
        keys: compute dtype [B, W, num_key_value_heads, K], rotated by RoPE. The key of position p
            is in slot p % W.
        values: compute dtype, in the shape and the slots of the keys.
    """

    keys: Tensor
    values: Tensor


# The state of one layer.
LayerState: TypeAlias = RecurrentState | AttentionState


class ModelState(NamedTuple):
    """Holds the state of a model after `num_tokens` tokens of one document a row.

    Attributes:
        num_tokens: int32 [B], the number of tokens that each row has consumed.
        layers: tuple of `RecurrentState` and `AttentionState`, one a layer.
    """

    num_tokens: Tensor
    layers: tuple[LayerState, ...]


_LETTERS = {"recurrence": "BL", "conv": "BRL", "keys": "BWGK", "values": "BWGK"}
RECORDS = {tuple(sorted(cls._fields)): cls for cls in (RecurrentState, AttentionState)}


def specification(config: RGemmaConfig, dtype: str) -> ModelState:
    """Describes the `ModelState` of an architecture, with a `keras.KerasTensor` for each array.

    Args:
        config: `RGemmaConfig`.
        dtype: the compute dtype of the model, for all arrays that are not pinned to float32.
    """

    def array(*shape: int, dtype: str = dtype) -> keras.KerasTensor:
        return keras.KerasTensor((None, *shape), dtype)

    width, window = config.recurrence_width, config.sliding_window_size
    ring = (window, config.num_key_value_heads, config.key_size)
    layers = [
        RecurrentState(array(width, dtype="float32"), array(config.conv_width - 1, width))
        if layer_type == RECURRENT
        else AttentionState(array(*ring), array(*ring))
        for layer_type in config.layer_types
    ]
    return ModelState(array(dtype="int32"), tuple(layers))


def zeros(config: RGemmaConfig, batch_size: int | Tensor, dtype: str) -> ModelState:
    """Makes the `ModelState` of rows that have consumed no token.

    Args:
        config: `RGemmaConfig`.
        batch_size: int or scalar tensor, B.
        dtype: as of `specification`.
    """
    return keras.tree.map_structure(
        lambda array: ops.zeros((batch_size, *array.shape[1:]), array.dtype),
        specification(config, dtype),
    )


def laid_out(state: ModelState) -> ModelState:
    """Lays a `ModelState` out over the devices of the `keras.distribution` in force.

    Rows along the data axis, channels of the recurrence along the model axis; keys and values of
    one head are whole on each device. See `sharding.activations.constrain`.
    """
    if keras.config.backend() != "jax" or keras.distribution.distribution() is None:
        return state
    return map_with_letters(constrain, state)


def map_with_letters(function: Callable[[Tensor, str], Tensor], state: ModelState) -> ModelState:
    """Applies a function of an array and the letters of its dimensions to a `ModelState`."""
    layers = tuple(
        type(layer)(*(function(x, _LETTERS[name]) for name, x in layer._asdict().items()))
        for layer in state.layers
    )
    return ModelState(function(state.num_tokens, "B"), layers)
