"""Defines the layer that derives the places of all tokens once for all other layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keras_rgemma.ops.places import Places, places_of
from keras_rgemma.shapes import check_same_rows
from keras_rgemma.types import Tensor


@keras.saving.register_keras_serializable(package="keras_rgemma")
class DocumentPlaces(keras.layers.Layer):
    """Derives the `Places` of tokens from their positions.

    Args:
        rope: None, or a pair of `max_wavelength`, float, and `rotated_size`, int.
        **kwargs: of `keras.layers.Layer`.

    Call arguments:
        positions: int32 [B, T], the place of each token in its document, -1 at pads.

    Returns:
        `Places`.
    """

    def __init__(self, rope: Sequence[Any] | None = None, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        self.rope = rope and tuple(rope)

    def call(self, positions: Tensor) -> Places:
        shape = tuple(positions.shape)
        check_same_rows(shape, shape)
        return places_of(positions, self.rope)

    def compute_output_spec(self, positions: Tensor) -> Places:
        batch, time = positions.shape

        def tensor(*shape: int | None, dtype: str = "int32") -> keras.KerasTensor:
            return keras.KerasTensor(shape, dtype)

        mask, per_row = tensor(batch, time, dtype="bool"), tensor(batch)
        rotation = ()
        if self.rope:
            angles = tensor(batch, time, 1, self.rope[1] // 2, dtype="float32")
            rotation = (angles, tensor(*angles.shape, dtype="float32"))
        first = tensor(batch, time, dtype="bool")
        return Places(tensor(batch, time), mask, first, per_row, tensor(batch), rotation)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rope": self.rope and list(self.rope)}
