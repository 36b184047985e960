"""Local multi-query attention with rotary positions on part of each head."""

import keras
from keras import ops

from keras_rgemma.layers.linear import linear
from keras_rgemma.ops.documents import last_token
from keras_rgemma.ops.rope import rotate
from keras_rgemma.ops.window_attention import window_attention
from keras_rgemma.state.records import AttentionState


@keras.saving.register_keras_serializable(package="keras_rgemma")
class LocalAttention(keras.layers.Layer):
    """Attention to the token itself and the W before it in its document.

    Griffin (arXiv 2402.19427), section 2.3. Query, key and value without bias, output with.

    Args:
        num_query_heads: int, H.
        num_key_value_heads: int, divides H; 1 is multi-query attention.
        head_dim: int, K.
        sliding_window_size: int, W.
        rope_max_wavelength: float.
        rotated_size: int, how many of a head's K features RoPE rotates.
        output_variance: float, scales the variance of the output projection's initial kernel.
        **kwargs: of `keras.layers.Layer`.

    Call arguments:
        x: float [B, T, D].
        positions: int32 [B, T], the place of each token in its document, -1 at pads.
        state: None, or `AttentionState`.
        return_state: bool.

    Returns:
        float [B, T, D], or with `return_state` a pair of it and the new `AttentionState`.
    """

    def __init__(
        self,
        num_query_heads,
        num_key_value_heads,
        head_dim,
        sliding_window_size,
        rope_max_wavelength,
        rotated_size,
        output_variance=1.0,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)
        self.num_query_heads = num_query_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = head_dim
        self.sliding_window_size = sliding_window_size
        self.rope_max_wavelength = rope_max_wavelength
        self.rotated_size = rotated_size
        self.output_variance = output_variance

    def build(self, input_shape):
        dim = input_shape[-1]
        queries = self.num_query_heads * self.head_dim
        keys = self.num_key_value_heads * self.head_dim
        dtype = self.dtype_policy
        self.query = linear(queries, dim, "query", dtype, use_bias=False)
        self.key = linear(keys, dim, "key", dtype, use_bias=False)
        self.value = linear(keys, dim, "value", dtype, use_bias=False)
        self.attention_output = linear(
            dim, queries, "attention_output", dtype, self.output_variance
        )
        for layer in (self.query, self.key, self.value):
            layer.build(input_shape)
        self.attention_output.build((*input_shape[:-1], queries))
        self.built = True

    def call(self, x, positions, state=None, return_state=False):
        places = ops.maximum(positions, 0)
        query = self._rotate(self._split(self.query(x), self.num_query_heads), places)
        key = self._rotate(self._split(self.key(x), self.num_key_value_heads), places)
        value = self._split(self.value(x), self.num_key_value_heads)
        attended = window_attention(
            query, key, value, positions, self.sliding_window_size, history=state
        )
        merged = (-1, ops.shape(x)[1], self.num_query_heads * self.head_dim)
        out = self.attention_output(ops.reshape(attended, merged))
        if not return_state:
            return out
        return out, updated_ring(state, key, value, positions, self.sliding_window_size)

    def _split(self, x, heads):
        return ops.reshape(x, (-1, ops.shape(x)[1], heads, self.head_dim))

    def _rotate(self, x, positions):
        return rotate(x, positions, self.rope_max_wavelength, self.rotated_size)

    def get_config(self):
        return {
            **super().get_config(),
            "num_query_heads": self.num_query_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "sliding_window_size": self.sliding_window_size,
            "rope_max_wavelength": self.rope_max_wavelength,
            "rotated_size": self.rotated_size,
            "output_variance": self.output_variance,
        }


def updated_ring(state, key, value, positions, window):
    """The `AttentionState` after a row, from the one before it (None: empty).

    Slot s holds the latest position p with p % W = s, so each slot can tell by itself whether its
    key is in the row, and where; the others keep what they had.
    """
    last_B, length_B = last_token(positions)
    slots_1W = ops.arange(window, dtype="int32")[None]
    age_BW = (length_B[:, None] - 1 - slots_1W) % window  # 0 for the last token
    index_BW = last_B[:, None] - age_BW
    nearest_BW = ops.maximum(index_BW, 0)
    place_BW = ops.take_along_axis(positions, nearest_BW, axis=1)
    in_row_BW = ops.logical_and(index_BW >= 0, place_BW == length_B[:, None] - 1 - age_BW)
    in_row_BW = ops.logical_and(in_row_BW, place_BW >= 0)[:, :, None, None]
    gathered = (ops.take_along_axis(x, nearest_BW[:, :, None, None], axis=1) for x in (key, value))
    before = (ops.zeros_like(key[:, :1]),) * 2 if state is None else state
    return AttentionState(
        *(
            ops.where(in_row_BW, new, ops.cast(old, new.dtype))
            for new, old in zip(gathered, before, strict=True)
        )
    )
