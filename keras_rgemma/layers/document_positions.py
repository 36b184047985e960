"""Defines the layer that derives the positions of tokens in their documents from the mask."""

import keras

from keras_rgemma.ops.documents import document_positions
from keras_rgemma.types import Tensor


@keras.saving.register_keras_serializable(package="keras_rgemma")
class DocumentPositions(keras.layers.Layer):
    """Derives the positions of tokens as `ops.documents.document_positions` does, -1 at pads.

    Call arguments:
        padding_mask: int or bool [B, T].

    Returns:
        int32 [B, T].
    """

    def call(self, padding_mask: Tensor) -> Tensor:
        return document_positions(padding_mask)

    def compute_output_spec(self, padding_mask: Tensor) -> keras.KerasTensor:
        return keras.KerasTensor(padding_mask.shape, "int32")
