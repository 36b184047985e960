"""Defines local multi-query attention with rotary positions on part of each head."""

import functools
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_rgemma.layers.binding import unchanged
from keras_rgemma.layers.linear import linear
from keras_rgemma.layers.recomputed import RecomputedInShape
from keras_rgemma.ops.places import Places, places_of
from keras_rgemma.ops.rope import apply_rotation
from keras_rgemma.ops.window_attention import updated_ring, window_attention
from keras_rgemma.sharding.activations import constrain, inputs_of_maps
from keras_rgemma.state.records import AttentionState
from keras_rgemma.types import Bind, LinearMap, Shape, Tensor


@keras.saving.register_keras_serializable(package="keras_rgemma")
class LocalAttention(RecomputedInShape, keras.layers.Layer):
    """Attends from each token to itself and the W tokens before it in its document.

    Griffin (arXiv 2402.19427), section 2.3. Query, key and value have no bias, the output has one.

    Args:
        num_query_heads: int, H.
        num_key_value_heads: int, divides H; 1 is multi-query attention.
        head_dim: int, K.
        sliding_window_size: int, W.
        rope_max_wavelength: float.
        rotated_size: int, the number of a head's K features that RoPE rotates.
        output_variance: float, scales the variance of the output projection's initial kernel.
        **kwargs: of `keras.layers.Layer`.

    Call arguments:
        x: float [B, T, D].
        places: `Places` of the tokens, or their positions int32 [B, T], -1 at pads.
        state: None, or `AttentionState`.
        return_state: bool.

    Returns:
        float [B, T, D], or with `return_state` a pair of it and the new `AttentionState`.
    """

    def __init__(
        self,
        num_query_heads: int,
        num_key_value_heads: int,
        head_dim: int,
        sliding_window_size: int,
        rope_max_wavelength: float,
        rotated_size: int,
        output_variance: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        self.num_query_heads = num_query_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = head_dim
        self.sliding_window_size = sliding_window_size
        self.rope_max_wavelength = rope_max_wavelength
        self.rotated_size = rotated_size
        self.output_variance = output_variance

    def build(self, input_shape: Shape) -> None:
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

    @property
    def rope(self) -> tuple[float, int]:
        """Returns the arguments of `ops.rope.rotation` after the positions."""
        return self.rope_max_wavelength, self.rotated_size

    def call(
        self,
        x: Tensor,
        places: Places | Tensor,
        state: AttentionState | None = None,
        return_state: bool = False,
    ) -> Tensor | tuple[Tensor, AttentionState]:
        return self.bound(unchanged)(x, places, state, return_state)

    def bound(self, bind: Bind) -> Callable[..., Any]:
        """Returns the function of this layer with bound parts, see `binding.unchanged`."""
        return functools.partial(
            local_attention,
            query=bind(self.query),
            key=bind(self.key),
            value=bind(self.value),
            attention_output=bind(self.attention_output),
            split_heads=bind(split_heads),
            join_heads=bind(join_heads),
            rotate=bind(apply_rotation),
            attend=bind(window_attention),
            updated_ring=bind(updated_ring),
            head_dim=self.head_dim,
            window=self.sliding_window_size,
            rope=self.rope,
        )

    def get_config(self) -> dict[str, Any]:
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


def split_heads(x: Tensor, head_dim: int) -> Tensor:
    """Splits features into heads: [B, T, H * K] -> [B, T, H, K]."""
    return ops.reshape(x, (-1, ops.shape(x)[1], x.shape[2] // head_dim, head_dim))


def join_heads(x: Tensor) -> Tensor:
    """Joins the features of heads: [B, T, H, K] -> [B, T, H * K]."""
    return ops.reshape(x, (-1, ops.shape(x)[1], x.shape[2] * x.shape[3]))


def local_attention(
    x: Tensor,
    places: Places | Tensor,
    state: AttentionState | None = None,
    return_state: bool = False,
    *,
    query: LinearMap,
    key: LinearMap,
    value: LinearMap,
    attention_output: LinearMap,
    split_heads: Callable[[Tensor, int], Tensor],
    join_heads: Callable[[Tensor], Tensor],
    rotate: Callable[..., Tensor],
    attend: Callable[..., Tensor],
    updated_ring: Callable[..., AttentionState],
    head_dim: int,
    window: int,
    rope: tuple[float, int],
) -> Tensor | tuple[Tensor, AttentionState]:
    """Computes `LocalAttention` with four linear maps.

    Args:
        x, places, state, return_state: as of `LocalAttention`.
        query, key, value, attention_output: linear maps.
        split_heads: function of [B, T, H * K] and K that returns [B, T, H, K].
        join_heads: function of [B, T, H, K] that returns [B, T, H * K].
        rotate: as `ops.rope.apply_rotation`.
        attend, updated_ring: as the functions of `ops.window_attention`.
        head_dim: int, K.
        window: int, W.
        rope: pair of `max_wavelength` and `rotated_size`.
    """
    places = places_of(places, rope)
    x = inputs_of_maps(x)
    # A mesh that does not divide the heads gets the queries of all of them on each device, once
    # they are computed: of two layouts one after the other the first is that of the product, which
    # the compiler would otherwise compute from the whole matrix.
    query_BTQ = constrain(query(x), "BTQ")
    heads = query_BTQ.shape[-1] // head_dim
    query_BTQ = constrain(query_BTQ, "BTQ", parts=heads)
    query_BTHK = constrain(split_heads(query_BTQ, head_dim), "BTHK")
    key_BTGK, value_BTGK = (
        constrain(split_heads(linear_map(x), head_dim), "BTGK") for linear_map in (key, value)
    )
    query_BTHK = rotate(query_BTHK, places.rotation)
    key_BTGK = rotate(key_BTGK, places.rotation)
    out_BTHK = attend(query_BTHK, key_BTGK, value_BTGK, places, window, state)
    out_BTQ = constrain(join_heads(constrain(out_BTHK, "BTHK")), "BTQ", parts=heads)
    out_BTD = constrain(attention_output(constrain(out_BTQ, "BTQ")), "BTD")
    if not return_state:
        return out_BTD
    return out_BTD, updated_ring(state, key_BTGK, value_BTGK, places, window)
