"""Defines the default loss and metric, of logits or of token losses and hits."""

import keras


@keras.saving.register_keras_serializable(package="keras_rgemma")
class TokenCrossEntropy(keras.losses.SparseCategoricalCrossentropy):
    """Computes sparse categorical cross-entropy from logits [B, T, V] or token losses [B, T]."""

    def __init__(self, from_logits=True, name="sparse_categorical_crossentropy", **kwargs):
        super().__init__(from_logits=from_logits, name=name, **kwargs)

    def call(self, y_true, y_pred):
        if len(y_pred.shape) == len(y_true.shape):
            return y_pred
        return super().call(y_true, y_pred)


@keras.saving.register_keras_serializable(package="keras_rgemma")
class TokenAccuracy(keras.metrics.SparseCategoricalAccuracy):
    """Computes sparse categorical accuracy from logits [B, T, V] or token hits [B, T]."""

    def update_state(self, y_true, y_pred, sample_weight=None):
        if len(y_pred.shape) == len(y_true.shape):
            return keras.metrics.Mean.update_state(self, y_pred, sample_weight)
        return super().update_state(y_true, y_pred, sample_weight)
