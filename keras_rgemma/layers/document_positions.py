"""The layer that tells all others where documents begin."""

import keras

from keras_rgemma.ops.documents import document_positions


@keras.saving.register_keras_serializable(package="keras_rgemma")
class DocumentPositions(keras.layers.Layer):
    """The place of each token in its document, -1 at pads: `ops.documents.document_positions`.

    Call arguments:
        padding_mask: int or bool [B, T].

    Returns:
        int32 [B, T].
    """

    def call(self, padding_mask):
        return document_positions(padding_mask)

    def compute_output_spec(self, padding_mask):
        return keras.KerasTensor(padding_mask.shape, "int32")
