"""Defines the real-gated linear recurrent unit."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_rgemma.layers.binding import unchanged
from keras_rgemma.layers.block_diagonal import block_diagonal_dense, from_blocks, to_blocks
from keras_rgemma.layers.recomputed import RecomputedInShape
from keras_rgemma.ops.bounded_sqrt import bounded_sqrt
from keras_rgemma.ops.linear_recurrence import linear_recurrence
from keras_rgemma.ops.places import Places, places_of
from keras_rgemma.sharding.activations import constrain
from keras_rgemma.types import Bind, LinearMap, Shape, Tensor

MIN_RADIUS, MAX_RADIUS = 0.9, 0.999
DECAY_SCALE = 8.0  # the paper's c


@keras.saving.register_keras_serializable(package="keras_rgemma")
class RecurrenceInitializer(keras.initializers.Initializer):
    """Draws `a_param` so that the squared radius is uniform in [0.9^2, 0.999^2].

    The value is `log(exp(-log radius) - 1)`, so that `softplus(a_param)` is `-log radius`. Griffin
    (arXiv 2402.19427), section 2.4.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._uniform = keras.initializers.RandomUniform(MIN_RADIUS**2, MAX_RADIUS**2, seed=seed)

    def __call__(self, shape: Sequence[int], dtype: str | None = None) -> Tensor:
        square = self._uniform(shape, dtype="float32")
        return ops.cast(ops.log(ops.expm1(-0.5 * ops.log(square))), dtype or "float32")

    def get_config(self) -> dict[str, Any]:
        return {"seed": self._uniform.get_config()["seed"]}


@keras.saving.register_keras_serializable(package="keras_rgemma")
class RGLRU(RecomputedInShape, keras.layers.Layer):
    """Computes the recurrence of Griffin: gated input, gated decay, one product a step.

    ```
    i = sigmoid(input_gate(x));  r = sigmoid(a_gate(x))
    log a = -8 * r * softplus(a_param)
    h_t = a_t * h_{t-1} + sqrt(1 - a_t^2) * i_t * x_t
    ```
    At the first token of a document `h_{t-1}` counts as zero and the root as 1. Griffin (arXiv
    2402.19427), section 2.4, equations 1 to 4.

    Args:
        num_blocks: int, H, the blocks of the gates.
        **kwargs: of `keras.layers.Layer`.

    Call arguments:
        x: float [B, T, L].
        places: `Places` of the tokens, or their positions int32 [B, T], -1 at pads.
        state: None, or float32 [B, L], h before the first token.
        return_state: bool.

    Returns:
        h in the compute dtype [B, T, L], or with `return_state` a pair of it and float32 [B, L].
    """

    def __init__(self, num_blocks: int, **kwargs: Any) -> None:
        # Without autocast, here and in `add_weight`, the state and `a_param` stay float32 in mixed
        # precision: a decay near 1 does not survive half precision.
        super().__init__(autocast=False, **kwargs)
        self.num_blocks = num_blocks

    def build(self, input_shape: Shape) -> None:
        batch, time, width = input_shape
        self.input_gate = block_diagonal_dense(
            width, self.num_blocks, "input_gate", self.dtype_policy
        )
        self.a_gate = block_diagonal_dense(width, self.num_blocks, "a_gate", self.dtype_policy)
        for gate in (self.input_gate, self.a_gate):
            gate.build((self.num_blocks, batch, time, width // self.num_blocks))
        self.a_param = self.add_weight(
            name="a_param", shape=(width,), initializer=RecurrenceInitializer(), autocast=False
        )
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
        split_blocks, join_blocks = bind(to_blocks), bind(from_blocks)
        input_gate, a_gate, count = bind(self.input_gate), bind(self.a_gate), self.num_blocks

        def split(x_BTL: Tensor) -> Tensor:
            # A mesh that does not divide the blocks gets the inputs of all of them on each device.
            x_HBTK = split_blocks(constrain(x_BTL, "BTL", parts=count), count)
            return constrain(x_HBTK, "HBTK")

        def join(x_HBTK: Tensor) -> Tensor:
            return constrain(join_blocks(constrain(x_HBTK, "HBTK")), "BTL", parts=count)

        return functools.partial(
            bind(rg_lru),
            input_gate=lambda x_HBTK: join(input_gate(x_HBTK)),
            a_gate=lambda x_HBTK: join(a_gate(x_HBTK)),
            a_param=bind(self.a_param),
            to_blocks=split,
            root=bind(bounded_sqrt),
            recurrence=bind(linear_recurrence),
        )

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_blocks": self.num_blocks}


def rg_lru(
    x: Tensor,
    places: Places | Tensor,
    state: Tensor | None = None,
    return_state: bool = False,
    *,
    input_gate: LinearMap,
    a_gate: LinearMap,
    a_param: Tensor,
    to_blocks: Callable[[Tensor], Tensor],
    root: Callable[[Tensor], Tensor],
    recurrence: Callable[..., tuple[Tensor, Tensor]],
) -> Tensor | tuple[Tensor, Tensor]:
    """Computes `RGLRU` with two gates.

    Args:
        x, places, state, return_state: as of `RGLRU`.
        input_gate, a_gate: functions of [H, B, T, L / H], linear maps that return [B, T, L].
        a_param: [L].
        to_blocks: function of [B, T, L] that returns [H, B, T, L / H].
        root: function, the square root.
        recurrence: as `ops.linear_recurrence`.
    """
    places = places_of(places)
    x_HBTK = to_blocks(x)
    input_gate_BTL, a_gate_BTL = (constrain(gate(x_HBTK), "BTL") for gate in (input_gate, a_gate))
    gated_BTL = ops.cast(ops.sigmoid(input_gate_BTL) * x, "float32")
    decay_gate_BTL = ops.cast(ops.sigmoid(a_gate_BTL), "float32")
    rate_L = -DECAY_SCALE * ops.softplus(ops.cast(a_param, "float32"))
    log_a_BTL = decay_gate_BTL * rate_L
    a_BTL = ops.exp(log_a_BTL)
    # 1 - a^2 without cancellation, which costs half of the digits as a goes to 1.
    multiplier_BTL = root(-ops.expm1(2.0 * log_a_BTL))
    # The first token forgets the document before it; a pad changes nothing.
    if places.is_first is not None:
        first_BT1 = places.is_first[:, :, None]
        multiplier_BTL = ops.where(first_BT1, 1.0, multiplier_BTL)
        a_BTL = ops.where(first_BT1, 0.0, a_BTL)
    normed_BTL = multiplier_BTL * gated_BTL
    if places.is_token is not None:
        token_BT1 = places.is_token[:, :, None]
        a_BTL = ops.where(token_BT1, a_BTL, 1.0)
        normed_BTL = ops.where(token_BT1, normed_BTL, 0.0)
    h_BTL, last_BL = recurrence(normed_BTL, a_BTL, state)
    h_BTL = constrain(ops.cast(h_BTL, x.dtype), "BTL")
    return (h_BTL, last_BL) if return_state else h_BTL
