"""Defines the optimizer for these models."""

from typing import Any

import keras

# The last part of the names of weights; on TensorFlow names are paths that end in ":0".
UNDECAYED = ("a_param", "bias", "scale", "embeddings")


@keras.saving.register_keras_serializable(package="keras_rgemma")
class AdamW(keras.optimizers.AdamW):
    """Optimizes with AdamW that decays matrices alone and clips the norm of all gradients together.

    Decay pulls a weight to zero. The decay rates `a_param`, the biases, the scales of the norms
    (stored as distances from one) and the embeddings are no better near zero.

    Weights of the dtype bfloat16 lose small steps to rounding. To train all weights, make the model
    with `dtype="mixed_bfloat16"`; the A and B of LoRA are float32 in any case.

    Args:
        learning_rate: float or `keras.optimizers.schedules.LearningRateSchedule`.
        weight_decay: float.
        global_clipnorm: float or None, the largest norm of all gradients together. "auto" for 1,
            or for None where `clipnorm` or `clipvalue` is given.
        **kwargs: of `keras.optimizers.AdamW`, such as `gradient_accumulation_steps`.

    Example:
    ```python
    lm.compile(optimizer=keras_rgemma.finetuning.AdamW(1e-4, gradient_accumulation_steps=8))
    ```
    """

    def __init__(
        self,
        learning_rate: float | keras.optimizers.schedules.LearningRateSchedule = 1e-4,
        weight_decay: float = 0.01,
        global_clipnorm: float | str | None = "auto",
        **kwargs: Any,
    ) -> None:
        if global_clipnorm == "auto":
            is_clipped = kwargs.get("clipnorm") or kwargs.get("clipvalue")
            global_clipnorm = None if is_clipped else 1.0
        super().__init__(
            learning_rate, weight_decay=weight_decay, global_clipnorm=global_clipnorm, **kwargs
        )
        self.exclude_from_weight_decay(var_names=[rf"(^|/){name}(:\d+)?$" for name in UNDECAYED])
