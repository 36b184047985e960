"""Defines the recurrent block: two branches, one of them with a state."""

import functools
from collections.abc import Callable
from typing import Any

import keras

from keras_rgemma.layers.activation import activation as activation_named
from keras_rgemma.layers.activation import gated
from keras_rgemma.layers.binding import unchanged
from keras_rgemma.layers.causal_conv1d import CausalConv1D
from keras_rgemma.layers.linear import linear
from keras_rgemma.layers.recomputed import RecomputedInShape
from keras_rgemma.layers.rg_lru import RGLRU
from keras_rgemma.ops.places import Places
from keras_rgemma.sharding.activations import constrain, inputs_of_maps
from keras_rgemma.state.records import RecurrentState
from keras_rgemma.types import Bind, LinearMap, Shape, Tensor


@keras.saving.register_keras_serializable(package="keras_rgemma")
class RecurrentBlock(RecomputedInShape, keras.layers.Layer):
    """Computes `linear_out(activation(linear_y(x)) * rg_lru(conv_1d(linear_x(x))))`.

    Griffin (arXiv 2402.19427), section 2.3 and figure 2b.

    Args:
        lru_dim: int, L.
        num_blocks: int, H, the blocks of the gates.
        conv_width: int.
        activation: str, of the y branch.
        output_variance: float, scales the variance of `linear_out`'s initial kernel.
        **kwargs: of `keras.layers.Layer`.

    Call arguments:
        x: float [B, T, D].
        places: `Places` of the tokens, or their positions int32 [B, T], -1 at pads.
        state: None, or `RecurrentState`.
        return_state: bool.

    Returns:
        float [B, T, D], or with `return_state` a pair of it and the new `RecurrentState`.
    """

    def __init__(
        self,
        lru_dim: int,
        num_blocks: int,
        conv_width: int = 4,
        activation: str = "gelu_tanh",
        output_variance: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        self.lru_dim = lru_dim
        self.num_blocks = num_blocks
        self.conv_width = conv_width
        self.activation_name = activation
        self.activation = activation_named(activation)  # Keras may recompute it
        self.output_variance = output_variance

    def build(self, input_shape: Shape) -> None:
        batch, time, dim = input_shape
        inner = (batch, time, self.lru_dim)
        dtype = self.dtype_policy
        self.linear_y = linear(self.lru_dim, dim, "linear_y", dtype)
        self.linear_x = linear(self.lru_dim, dim, "linear_x", dtype)
        self.conv_1d = CausalConv1D(self.conv_width, name="conv_1d", dtype=dtype)
        self.rg_lru = RGLRU(self.num_blocks, name="rg_lru", dtype=dtype)
        self.linear_out = linear(dim, self.lru_dim, "linear_out", dtype, self.output_variance)
        for layer in (self.linear_y, self.linear_x):
            layer.build(input_shape)
        for layer in (self.conv_1d, self.rg_lru, self.linear_out):
            layer.build(inner)
        self.built = True

    def call(
        self,
        x: Tensor,
        places: Places | Tensor,
        state: RecurrentState | None = None,
        return_state: bool = False,
    ) -> Tensor | tuple[Tensor, RecurrentState]:
        return self.bound(unchanged)(x, places, state, return_state)

    def bound(self, bind: Bind) -> Callable[..., Any]:
        """Returns the function of this layer with bound parts, see `binding.unchanged`."""
        return functools.partial(
            recurrent_block,
            linear_y=bind(self.linear_y),
            linear_x=bind(self.linear_x),
            conv_1d=bind(self.conv_1d),
            rg_lru=bind(self.rg_lru),
            linear_out=bind(self.linear_out),
            multiply=functools.partial(bind(gated), bind(self.activation)),
        )

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "lru_dim": self.lru_dim,
            "num_blocks": self.num_blocks,
            "conv_width": self.conv_width,
            "activation": self.activation_name,
            "output_variance": self.output_variance,
        }


def recurrent_block(
    x: Tensor,
    places: Places | Tensor,
    state: RecurrentState | None = None,
    return_state: bool = False,
    *,
    linear_y: LinearMap,
    linear_x: LinearMap,
    conv_1d: Callable[..., Any],
    rg_lru: Callable[..., Any],
    linear_out: LinearMap,
    multiply: Callable[[Tensor, Tensor], Tensor],
) -> Tensor | tuple[Tensor, RecurrentState]:
    """Computes `RecurrentBlock` with linear maps, a convolution and a recurrence.

    `multiply` is a function of the gate and of what it is multiplied by.
    """
    conv_state, recurrence = (None, None) if state is None else (state.conv, state.recurrence)
    x = inputs_of_maps(x)
    y_BTL = constrain(linear_y(x), "BTL")
    z_BTL = constrain(linear_x(x), "BTL")
    z_BTL = conv_1d(z_BTL, places, state=conv_state, return_state=return_state)
    if return_state:
        z_BTL, conv_state = z_BTL
    z_BTL = rg_lru(z_BTL, places, state=recurrence, return_state=return_state)
    if return_state:
        z_BTL, recurrence = z_BTL
    out_BTD = constrain(linear_out(multiply(y_BTL, z_BTL)), "BTD")
    return (out_BTD, RecurrentState(recurrence, conv_state)) if return_state else out_BTD
