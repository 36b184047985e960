"""The default loss and metric, which take losses and hits of tokens as well as logits."""

import keras


@keras.saving.register_keras_serializable(package="keras_rgemma")
class TokenCrossEntropy(keras.losses.SparseCategoricalCrossentropy):
    """Sparse categorical cross-entropy from logits [B, T, V], or from losses [B, T] themselves."""

    def __init__(self, from_logits=True, name="sparse_categorical_crossentropy", **kwargs):
        super().__init__(from_logits=from_logits, name=name, **kwargs)

    def call(self, y_true, y_pred):
        if len(y_pred.shape) == len(y_true.shape):
            return y_pred
        return super().call(y_true, y_pred)


@keras.saving.register_keras_serializable(package="keras_rgemma")
class TokenAccuracy(keras.metrics.SparseCategoricalAccuracy):
    """Sparse categorical accuracy of logits [B, T, V], or of hits [B, T] themselves."""

    def update_state(self, y_true, y_pred, sample_weight=None):
        if len(y_pred.shape) == len(y_true.shape):
            return keras.metrics.Mean.update_state(self, y_pred, sample_weight)
        return super().update_state(y_true, y_pred, sample_weight)
