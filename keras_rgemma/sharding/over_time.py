"""Gives a function of neighbouring tokens the tokens of the neighbouring device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from keras_rgemma.types import Tensor

if keras.config.backend() == "jax":
    from keras_rgemma.sharding.jax.time_division import time_division, tokens_before

    def over_time(
        function: Callable[..., Tensor],
        x: Tensor,
        positions: Tensor,
        state: Tensor | None,
        kernel: Tensor,
        bias: Tensor,
    ) -> Tensor:
        """Calls a causal function, on each device with its part of the rows.

        Args:
            function: function of the other arguments that returns an array as x. A token depends on
                the `kernel.shape[0] - 1` tokens before it, and on itself.
            x: float [B, T, L].
            positions: int32 [B, T].
            state: float [B, R - 1, L], the tokens before x; None for zeros.
            kernel, bias: float [R, L] and [L].
        """
        division = time_division("BTL", x.shape)
        if division is None:
            return function(x, positions, state, kernel, bias)

        def part(
            x: Tensor, positions: Tensor, kernel: Tensor, bias: Tensor, *state: Tensor
        ) -> Tensor:
            before = tokens_before(x, kernel.shape[0] - 1, division, *state)
            return function(x, positions, before, kernel, bias)

        arrays = x, positions, kernel, bias, *([] if state is None else [state])
        letters = ("BTL", "BT", "RL", "L", "BRL")
        return division.run(part, letters[: len(arrays)], "BTL", *arrays)

else:

    def over_time(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """Calls a function: only JAX divides rows over time."""
        return function(*arguments)
