"""Defines the gated MLP."""

import functools
from collections.abc import Callable
from typing import Any

import keras

from keras_rgemma.layers.activation import activation as activation_named
from keras_rgemma.layers.activation import gated
from keras_rgemma.layers.binding import unchanged
from keras_rgemma.layers.linear import linear
from keras_rgemma.layers.recomputed import RecomputedInShape
from keras_rgemma.sharding.activations import constrain, inputs_of_maps
from keras_rgemma.types import Bind, LinearMap, Shape, Tensor


@keras.saving.register_keras_serializable(package="keras_rgemma")
class GatedMLP(RecomputedInShape, keras.layers.Layer):
    """Computes `down(activation(gate(x)) * up(x))` of three biased linear maps.

    Griffin (arXiv 2402.19427), section 2.2. Gate and up are two matrices [D, M]: XLA on
    CPUs transposes and copies one array [2, D, M] in every step of decoding.

    Args:
        intermediate_dim: int, M, the width of one branch.
        activation: str.
        output_variance: float, scales the variance of `ffw_down`'s initial kernel.
        **kwargs: of `keras.layers.Layer`.

    Call arguments:
        x: float [B, T, D].

    Returns:
        float [B, T, D].
    """

    def __init__(
        self,
        intermediate_dim: int,
        activation: str = "gelu_tanh",
        output_variance: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.intermediate_dim = intermediate_dim
        self.activation_name = activation
        self.activation = activation_named(activation)  # Keras may recompute it
        self.output_variance = output_variance

    def build(self, input_shape: Shape) -> None:
        dim, width, dtype = input_shape[-1], self.intermediate_dim, self.dtype_policy
        # Flax counts the axis of the two stacked matrices as fan-in, too: 2 D.
        self.ffw_gate = linear(width, 2 * dim, "ffw_gate", dtype)
        self.ffw_up = linear(width, 2 * dim, "ffw_up", dtype)
        self.ffw_down = linear(dim, width, "ffw_down", dtype, self.output_variance)
        self.ffw_gate.build(input_shape)
        self.ffw_up.build(input_shape)
        self.ffw_down.build((*input_shape[:-1], width))
        self.built = True

    def call(self, x: Tensor) -> Tensor:
        return self.bound(unchanged)(x)

    def bound(self, bind: Bind) -> Callable[..., Tensor]:
        """Returns the function of this layer with bound parts, see `binding.unchanged`."""
        return functools.partial(
            gated_mlp,
            multiply=functools.partial(bind(gated), bind(self.activation)),
            ffw_gate=bind(self.ffw_gate),
            ffw_up=bind(self.ffw_up),
            ffw_down=bind(self.ffw_down),
        )

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "intermediate_dim": self.intermediate_dim,
            "activation": self.activation_name,
            "output_variance": self.output_variance,
        }


def gated_mlp(
    x: Tensor,
    ffw_gate: LinearMap,
    ffw_up: LinearMap,
    ffw_down: LinearMap,
    multiply: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Computes `GatedMLP` with three linear maps [..., D] -> M, M and [..., M] -> D.

    `multiply` is a function of the gate and of what it is multiplied by.
    """
    x = inputs_of_maps(x)
    gate_BTM, up_BTM = (constrain(linear_map(x), "BTM") for linear_map in (ffw_gate, ffw_up))
    return constrain(ffw_down(multiply(gate_BTM, up_BTM)), "BTD")
