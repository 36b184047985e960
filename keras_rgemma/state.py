"""What a model remembers of the tokens it has consumed: records of arrays of fixed shape.

All leaves have the batch as their first axis, so that a state can be repeated, sliced, gathered
(beam search) and concatenated with `keras.tree.map_structure` and no code per record.
"""

from typing import Any, NamedTuple

from keras import ops

from keras_rgemma.config import RECURRENT


class RecurrentState(NamedTuple):
    """The state of a recurrent block.

    Attributes:
        recurrence: float32 [B, L], the hidden state h of the RG-LRU after the last token.
        conv: compute dtype [B, conv_width - 1, L], the last inputs of the convolution, oldest
            first, zeros where the document has not been that long.
    """

    recurrence: Any
    conv: Any


class AttentionState(NamedTuple):
    """The state of a local attention block: a ring buffer of W keys and values.

    Attributes:
        keys: compute dtype [B, W, num_key_value_heads, K], rotated by RoPE. The key of position p
            is in slot p % W.
        values: compute dtype, the same shape and places.
    """

    keys: Any
    values: Any


class ModelState(NamedTuple):
    """The state of a model, after `num_tokens` tokens of one document a row.

    Attributes:
        num_tokens: int32 [B], how many tokens the row has consumed.
        layers: tuple of `RecurrentState` and `AttentionState`, one a layer.
    """

    num_tokens: Any
    layers: tuple


def zeros(config, batch_size, dtype):
    """The `ModelState` of rows that have consumed nothing.

    Args:
        config: `RGemmaConfig`.
        batch_size: int or scalar tensor, B.
        dtype: the compute dtype of the model, of what is not pinned to float32.
    """
    layers = []
    for layer_type in config.layer_types:
        if layer_type == RECURRENT:
            width = config.recurrence_width
            layers.append(
                RecurrentState(
                    recurrence=ops.zeros((batch_size, width), "float32"),
                    conv=ops.zeros((batch_size, config.conv_width - 1, width), dtype),
                )
            )
        else:
            shape = (
                batch_size,
                config.sliding_window_size,
                config.num_key_value_heads,
                config.key_size,
            )
            layers.append(AttentionState(ops.zeros(shape, dtype), ops.zeros(shape, dtype)))
    return ModelState(ops.zeros((batch_size,), "int32"), tuple(layers))
