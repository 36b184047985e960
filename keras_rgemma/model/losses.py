"""Defines the default loss and metric, of logits or of token losses and hits.

Both compute in float32 unless told otherwise: Keras converts the labels, too, and floatx may be a
dtype that has no number for every token id, such as float16 or bfloat16.
"""

import itertools
from typing import Any

import keras

from keras_rgemma.types import Tensor

# Methods whose bodies compute with the inputs and the logits of a step, if a user writes them.
SEES_LOGITS = ("call", "compute_loss", "compute_metrics", "compute_loss_and_updates")


def sees_logits(model: object) -> bool:
    """Returns whether a user has overridden one of the methods in `SEES_LOGITS`.

    Args:
        model: object of a class of this package, or of a user's subclass.
    """
    classes = type(model).__mro__
    of_user = itertools.takewhile(lambda x: not x.__module__.startswith("keras_rgemma."), classes)
    return any(name in vars(owner) for owner in (model, *of_user) for name in SEES_LOGITS)


class _Default:
    """Mixin for a loss or metric that "auto" stands for in `compile`."""

    @classmethod
    def is_meant_by(cls, value: Any) -> bool:
        """Returns whether an argument of `compile` is "auto", or objects of this very class."""
        values = value if isinstance(value, (list, tuple)) else [value]
        return all(type(x) is cls or (isinstance(x, str) and x == "auto") for x in values)


@keras.saving.register_keras_serializable(package="keras_rgemma")
class TokenCrossEntropy(_Default, keras.losses.SparseCategoricalCrossentropy):
    """Computes sparse categorical cross-entropy from logits [B, T, V] or token losses [B, T]."""

    def __init__(
        self,
        from_logits: bool = True,
        name: str = "sparse_categorical_crossentropy",
        dtype: str = "float32",
        **kwargs: Any,
    ) -> None:
        super().__init__(from_logits=from_logits, name=name, dtype=dtype, **kwargs)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        if len(y_pred.shape) == len(y_true.shape):
            return y_pred
        return super().call(y_true, y_pred)


@keras.saving.register_keras_serializable(package="keras_rgemma")
class TokenAccuracy(_Default, keras.metrics.SparseCategoricalAccuracy):
    """Computes sparse categorical accuracy from logits [B, T, V] or token hits [B, T]."""

    def __init__(self, name: str = "sparse_categorical_accuracy", dtype: str = "float32") -> None:
        super().__init__(name=name, dtype=dtype)

    def update_state(self, y_true: Tensor, y_pred: Tensor, sample_weight: Any | None = None) -> Any:
        if len(y_pred.shape) == len(y_true.shape):
            return keras.metrics.Mean.update_state(self, y_pred, sample_weight)
        return super().update_state(y_true, y_pred, sample_weight)
