"""Defines the default loss and metric, of logits or of token losses and hits.

Both compute in float32 unless told otherwise: Keras converts the labels, too, and floatx may be a
dtype that has no number for every token id, such as float16 or bfloat16.
"""

import keras


@keras.saving.register_keras_serializable(package="keras_rgemma")
class TokenCrossEntropy(keras.losses.SparseCategoricalCrossentropy):
    """Computes sparse categorical cross-entropy from logits [B, T, V] or token losses [B, T]."""

    def __init__(
        self,
        from_logits=True,
        name="sparse_categorical_crossentropy",
        dtype="float32",
        **kwargs,
    ):
        super().__init__(from_logits=from_logits, name=name, dtype=dtype, **kwargs)

    def call(self, y_true, y_pred):
        if len(y_pred.shape) == len(y_true.shape):
            return y_pred
        return super().call(y_true, y_pred)


@keras.saving.register_keras_serializable(package="keras_rgemma")
class TokenAccuracy(keras.metrics.SparseCategoricalAccuracy):
    """Computes sparse categorical accuracy from logits [B, T, V] or token hits [B, T]."""

    def __init__(self, name="sparse_categorical_accuracy", dtype="float32"):
        super().__init__(name=name, dtype=dtype)

    def update_state(self, y_true, y_pred, sample_weight=None):
        if len(y_pred.shape) == len(y_true.shape):
            return keras.metrics.Mean.update_state(self, y_pred, sample_weight)
        return super().update_state(y_true, y_pred, sample_weight)
