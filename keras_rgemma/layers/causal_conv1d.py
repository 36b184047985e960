"""Defines the depthwise causal convolution, which never reads across a document's beginning."""

import functools
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_rgemma.layers.binding import unchanged
from keras_rgemma.layers.recomputed import RecomputedInShape
from keras_rgemma.ops.places import Places, places_of
from keras_rgemma.ops.time_range import time_range
from keras_rgemma.ops.tokens_at import tokens_at
from keras_rgemma.sharding.over_time import over_time
from keras_rgemma.types import Bind, Shape, Tensor


@keras.saving.register_keras_serializable(package="keras_rgemma")
class CausalConv1D(RecomputedInShape, keras.layers.Layer):
    """Mixes each feature with its last values: the temporal convolution of Griffin.

    `y_t = bias + sum_s kernel[width - 1 - s] * x_{t-s}` over s = 0 .. width - 1, as far back as
    the document goes. Griffin (arXiv 2402.19427), section 2.3.

    Args:
        width: int, the number of taps.
        **kwargs: of `keras.layers.Layer`.

    Call arguments:
        x: float [B, T, L].
        places: `Places` of the tokens, or their positions int32 [B, T], -1 at pads.
        state: None, or float [B, width - 1, L]: the inputs before x, oldest first.
        return_state: bool.

    Returns:
        float [B, T, L], or with `return_state` a pair of it and the new state.
    """

    def __init__(self, width: int = 4, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        self.width = width

    def build(self, input_shape: Shape) -> None:
        channels = input_shape[-1]
        # Flax's variance scaling with scale 0.01 and the taps as fan-in.
        initializer = keras.initializers.RandomNormal(stddev=(0.01 / self.width) ** 0.5)
        self.kernel = self.add_weight(
            name="kernel", shape=(self.width, channels), initializer=initializer
        )
        self.bias = self.add_weight(name="bias", shape=(channels,), initializer="zeros")
        self.built = True

    def call(
        self,
        x: Tensor,
        places: Places | Tensor,
        state: Tensor | None = None,
        return_state: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        return self.bound(unchanged)(x, places, state, return_state)

    def bound(self, bind: Bind) -> Callable[..., Any]:
        """Returns the function of this layer with bound parts, see `binding.unchanged`."""
        return functools.partial(
            bind(causal_conv1d), kernel=bind(self.kernel), bias=bind(self.bias)
        )

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "width": self.width}


def causal_conv1d(
    x: Tensor,
    places: Places | Tensor,
    state: Tensor | None = None,
    return_state: bool = False,
    *,
    kernel: Tensor,
    bias: Tensor,
) -> Tensor | tuple[Tensor, Tensor]:
    """Computes `CausalConv1D` with kernel [width, L] and bias [L]."""
    places = places_of(places)
    kernel_RL, bias_L = ops.cast(kernel, x.dtype), ops.cast(bias, x.dtype)
    reach = kernel_RL.shape[0] - 1
    if state is not None and x.shape[1] == 1:
        return _next_token(x, kernel_RL, bias_L, places, state, return_state)
    y_BTL = over_time(_convolution, x, places.positions, state, kernel_RL, bias_L)
    if not return_state:
        return y_BTL
    return y_BTL, _final_state(x, state, places, reach)


def _convolution(
    x: Tensor, positions: Tensor, state: Tensor | None, kernel_RL: Tensor, bias_L: Tensor
) -> Tensor:
    """Convolves tokens with the inputs before them: `state`, or zeros for None."""
    reach, length = kernel_RL.shape[0] - 1, ops.shape(x)[1]
    padded_BTL = _after_state(x, state, reach)
    y_BTL = bias_L + x * kernel_RL[reach]
    for shift in range(1, reach + 1):
        shifted_BTL = time_range(padded_BTL, reach - shift, length)
        same_document_BT1 = ops.cast(positions >= shift, x.dtype)[:, :, None]
        y_BTL = y_BTL + shifted_BTL * same_document_BT1 * kernel_RL[reach - shift]
    return y_BTL


def _after_state(x: Tensor, state: Tensor | None, reach: int) -> Tensor:
    """Joins the inputs before a row and the row."""
    if state is None:
        return ops.pad(x, ((0, 0), (reach, 0), (0, 0)))
    return ops.concatenate([ops.cast(state, x.dtype), x], axis=1)


def _next_token(
    x_B1L: Tensor,
    kernel_RL: Tensor,
    bias_L: Tensor,
    places: Places,
    state: Tensor,
    return_state: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    """Convolves one token a row with the inputs in the state, zeros before a document."""
    recent_BRL = ops.concatenate([ops.cast(state, x_B1L.dtype), x_B1L], axis=1)
    y_B1L = ops.sum(recent_BRL * kernel_RL, axis=1, keepdims=True) + bias_L
    if not return_state:
        return y_B1L
    state_BRL = recent_BRL[:, 1:]
    if places.is_token is not None:
        state_BRL = ops.where(places.is_token[:, :, None], state_BRL, recent_BRL[:, :-1])
    return y_B1L, state_BRL


def _final_state(x: Tensor, state: Tensor | None, places: Places, reach: int) -> Tensor:
    """Returns the last `reach` inputs of each row's last document, zeros before the document."""
    last_B, length_B = places.last, places.length
    back_R = ops.arange(reach, dtype="int32")
    # Index last + 1 + i of the padded row is `reach - 1 - i` tokens before the last one.
    index_BR = last_B[:, None] + 1 + back_R
    recent_BRL = tokens_at(_after_state(x, state, reach), index_BR)
    known_BR = length_B[:, None] >= reach - back_R
    # A row without a token keeps its state, to which the indices then point.
    known_BR = ops.logical_or(known_BR, last_B[:, None] < 0)
    return ops.where(known_BR[:, :, None], recent_BRL, ops.zeros_like(recent_BRL))
