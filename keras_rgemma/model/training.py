"""Trains and evaluates a language model without all of its logits at a time."""

import functools
import operator
import pathlib
import types
from typing import Any

import keras
from keras import ops

from keras_rgemma.backend import implementation_key
from keras_rgemma.checkpoints import backup
from keras_rgemma.files import new_file
from keras_rgemma.keras_internals.parameters import normal_tensors
from keras_rgemma.keras_internals.steps import RecoverableSteps, recovers
from keras_rgemma.keras_internals.training import (
    backup_files,
    forget_initial_epoch,
    nested_evaluation,
    report_loss_in_float32,
    sync_weights,
)
from keras_rgemma.layers.lora import lora_layers
from keras_rgemma.lora import files
from keras_rgemma.model import distributed, examples, processes
from keras_rgemma.model.distributed import in_distribution
from keras_rgemma.model.losses import SEES_LOGITS, TokenAccuracy, TokenCrossEntropy, sees_logits
from keras_rgemma.ops.cross_entropy import cross_entropy
from keras_rgemma.sharding.checks import check_length
from keras_rgemma.sharding.host import reads, writes
from keras_rgemma.text.sources import is_prepared
from keras_rgemma.types import StrPath, Tensor

_LABELS = "keras_rgemma/labels"  # the key of the labels among the inputs of a step


class Training(RecoverableSteps):
    """Mixin for a KerasHub causal language model that trains it without all of its logits.

    In a step of training or evaluation, the model returns the loss and the hit of each token
    instead of its logits; Keras' own losses and metrics take these. A subclass that overrides one
    of the methods in `losses.SEES_LOGITS` returns all logits, as the models of KerasHub do. After
    a call that raises or is interrupted, weights, optimizer and metrics are those after the last
    whole step.
    """

    optimizer: Any

    _is_chunked = False
    _backups = ()

    def compile(
        self,
        optimizer: Any = "auto",
        loss: Any = "auto",
        *,
        weighted_metrics: Any = "auto",
        **kwargs: Any,
    ) -> None:
        needs_logits = any(kwargs.get(name) for name in ("metrics", "loss_weights"))
        is_default = TokenCrossEntropy.is_meant_by(loss)
        is_default &= not weighted_metrics or TokenAccuracy.is_meant_by(weighted_metrics)
        self._is_chunked = is_default and not needs_logits
        super().compile(
            optimizer,
            TokenCrossEntropy() if _is_auto(loss) else loss,
            weighted_metrics=[TokenAccuracy()] if _is_auto(weighted_metrics) else weighted_metrics,
            **kwargs,
        )
        report_loss_in_float32(self)

    @normal_tensors()
    def compile_from_config(self, config: dict[str, Any]) -> None:
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    # === Examples ===

    @in_distribution
    @recovers
    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        sample_weight: Any | None = None,
        validation_data: Any = None,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """Trains the model, as `keras.Model.fit` does.

        Args:
            x: texts, prompts with responses, conversations, rows of token ids, or what the
                preprocessor returns, in every form of docs/data.md. Data in memory (lists, arrays,
                columns, tables) are tokenized before training, and shuffled unless `shuffle` is
                False. Datasets, loaders and generators are read lazily and keep their order.
            y: labels of preprocessed inputs; examples bring their own.
            batch_size: int, 32 by default; a source of batches keeps its own.
            sample_weight: weights of examples in memory, one each, or of preprocessed inputs.
            validation_data: data in any of these forms, alone or as `(x, y, sample_weight)`.
            **kwargs: of `keras.Model.fit`, without `class_weight`.

        Raises:
            TypeError: an element is no example, such as None.
            ValueError: examples are malformed, come with `y`, or have a response that does not fit
                into a row (see `lost_responses` of `RGemmaCausalLMPreprocessor`); or the data axis
                of a mesh does not divide the rows of a batch.
            RuntimeError: several processes would train a model each (see
                docs/several_processes.md).

        Example:
        ```python
        lm.fit(["The quick brown fox.", "Call me Ishmael."], batch_size=2)
        lm.fit({"prompts": ["What is a fox?"], "responses": [" An animal."]}, epochs=2)
        lm.fit(lm.preprocessor(["In the beginning"]))
        ```
        """
        arguments = {
            "x": x,
            "y": y,
            "batch_size": batch_size,
            "sample_weight": sample_weight,
            "validation_data": validation_data,
            **kwargs,
        }
        processes.check("fit")
        arguments, is_read = examples.fit_arguments(self, arguments)
        arguments = processes.own_rows(arguments)
        self._backups = backup.backups(callbacks_of(kwargs.get("callbacks")))
        for callback in self._backups:
            backup.mend(callback)
        # KerasHub makes a dataset of everything, which Keras does not shuffle.
        fit = functools.partial(keras.Model.fit, self) if is_read else super().fit
        try:
            with examples.reading(arguments):
                return fit(**arguments)
        finally:
            self._backups = ()
            forget_initial_epoch(self)  # Keras would keep it for the next `fit`

    @in_distribution
    @recovers
    @normal_tensors()  # the variables of metrics are made here
    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        sample_weight: Any | None = None,
        **kwargs: Any,
    ) -> Any:
        """Computes the loss and metrics on data in any form that `fit` takes.

        Example:
        ```python
        lm.evaluate(["The quick brown fox.", "Call me Ishmael."], return_dict=True)
        ```
        """
        arguments = {"x": x, "y": y, "batch_size": batch_size, "sample_weight": sample_weight}
        if nested_evaluation(kwargs):  # `fit` has read these data
            return super().evaluate(**arguments, **kwargs)
        processes.check("evaluate")
        arguments, is_read = examples.evaluate_arguments(self, arguments | kwargs)
        arguments = processes.own_rows(arguments)
        evaluate = functools.partial(keras.Model.evaluate, self) if is_read else super().evaluate
        with examples.reading(arguments):
            return evaluate(**arguments)

    @in_distribution
    @recovers
    def predict(self, x: Any = None, batch_size: int | None = None, **kwargs: Any) -> Any:
        """Computes the logits [B, T, V] of examples, one a row, as `keras.Model.predict` does.

        Example:
        ```python
        logits = lm.predict(["The quick brown fox."])
        ```
        """
        processes.check("predict")
        arguments = {"x": x, "batch_size": batch_size, **kwargs}
        arguments, is_read = examples.predict_arguments(self, arguments)
        predict = functools.partial(keras.Model.predict, self) if is_read else super().predict
        with examples.reading(arguments):
            return predict(**arguments)

    def preprocess_samples(self, x: Any, y: Any = None, sample_weight: Any | None = None) -> Any:
        if is_prepared(x):
            return keras.utils.pack_x_y_sample_weight(x, y, sample_weight)
        return super().preprocess_samples(x, y, sample_weight)

    @writes
    def save_weights(self, filepath: StrPath, overwrite: bool = True, **kwargs: Any) -> None:
        """Writes the weights, A and B of LoRA included, as `keras.Model.save_weights` does.

        A file gets its name when it is complete: with `keras.callbacks.BackupAndRestore`, training
        that is killed at any moment continues from the last complete backup. (With an int as its
        `save_freq`, Keras begins the epoch of the last backup anew.)

        Example:
        ```python
        lm.save_weights("model.weights.h5")
        lm.load_weights("model.weights.h5")
        ```
        """
        is_file = str(filepath).endswith(".weights.h5") and "://" not in str(filepath)
        if not (is_file and overwrite) or kwargs.get("max_shard_size"):
            return super().save_weights(filepath, overwrite, **kwargs)
        with new_file(filepath) as partial:
            super().save_weights(partial, **kwargs)
            for callback in self._backups:
                if pathlib.Path(filepath) == backup_files(callback)[0]:
                    backup.sign(partial, callback)

    @reads
    def load_weights(self, filepath: StrPath, skip_mismatch: bool = False, **kwargs: Any) -> None:
        """Loads weights for `OptimizerState.load_weights`, and keeps A and B of LoRA whole."""
        with files.keeping_lora(self.backbone, filepath, skip_mismatch):
            super().load_weights(filepath, skip_mismatch, **kwargs)

    # === Steps ===

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        if not _has_labels(inputs):
            return super().call(inputs, training=training, mask=mask)
        inputs = dict(inputs)
        labels = inputs.pop(_LABELS)
        hidden = self.hidden_states(inputs, training)
        head = self.backbone.token_embedding
        # Not its `reverse` call, which rounds the hidden states, too, where the head is rounded:
        # no gradient comes through that.
        losses, hits = cross_entropy(
            hidden,
            ops.cast(head.table(), hidden.dtype),
            labels,
            head.logit_soft_cap,
            needs_embedding_gradient=bool(head.trainable_variables) and not head.quantization_mode,
        )
        return {"losses": losses, "hits": hits}

    def hidden_states(self, inputs: Any, training: bool | None) -> Tensor:
        """Computes the final hidden states [B, T, D] of a step."""
        return self.backbone(inputs, training=training)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any | None = None,
        sample_weight: Any | None = None,
        training: bool | None = True,
    ) -> Tensor:
        y_pred = y_pred["losses"] if isinstance(y_pred, dict) else y_pred
        return super().compute_loss(x, y, y_pred, sample_weight, training)

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any | None = None
    ) -> dict[str, Any]:
        y_pred = y_pred["hits"] if isinstance(y_pred, dict) else y_pred
        return super().compute_metrics(x, y, y_pred, sample_weight)

    # Data are the last argument on each backend; on JAX the state comes before.

    def train_step(self, *inputs: Any) -> Any:
        *state, data = inputs
        data = self._labelled(data)
        if self.backbone.token_embedding.quantization_mode and not _has_labels(data[0]):
            raise ValueError(
                "No gradient comes through the logits of a quantized embedding. Leave `loss` "
                "and `weighted_metrics` of `compile` at 'auto', pass no `metrics` or "
                f"`loss_weights`, override none of {SEES_LOGITS}, or quantize with "
                "`filters=lambda layer: layer is not lm.backbone.token_embedding`."
            )
        return super().train_step(*state, data)

    def test_step(self, *inputs: Any) -> Any:
        *state, data = inputs
        return super().test_step(*state, self._labelled(data))

    def _labelled(self, data: Any) -> tuple[Any, Any, Any]:
        """Adds the labels of a step to its inputs: the model then returns losses and hits."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        is_chunked = self._is_chunked and not sees_logits(self)
        are_rows = len(getattr(y, "shape", ())) == 2
        if are_rows:
            check_length(y.shape[1])
        if is_chunked and isinstance(x, dict) and are_rows:
            x = {**x, _LABELS: y}
        return x, y, sample_weight

    def sync_weights(self) -> None:
        """Writes the weights into their variables in a callback of `fit`.

        Between the batches of an epoch, Keras on JAX keeps the weights elsewhere.

        Example:
        ```python
        sync = keras.callbacks.LambdaCallback(on_train_batch_end=lambda *_, **__: lm.sync_weights())
        lm.fit(["In the beginning"], callbacks=[sync])
        ```
        """
        sync_weights(self)

    # === Compiled programs, which LoRA makes stale ===

    def compile_key(self) -> tuple[Any, ...]:
        """Lists the objects that a compiled program depends on, a tuple to compare by identity."""
        alphas = (layer.lora_alpha for layer in lora_layers(self.backbone))
        return (*self.weights, *alphas, *self.backbone.transformer_layers, implementation_key())

    def make_train_function(self, force: bool = False) -> Any:
        processes.check("fit")  # for `train_on_batch`, too
        self.check_optimizer()
        if self.optimizer is not None and not self.optimizer.built:
            # TensorFlow traces a step again if it makes the optimizer's variables.
            self.optimizer.build(self.trainable_variables)
        distributed.replicate_rest(self)
        return super().make_train_function(force or self._is_stale("train"))

    def make_test_function(self, force: bool = False) -> Any:
        distributed.replicate_rest(self)
        return super().make_test_function(force or self._is_stale("test"))

    def make_predict_function(self, force: bool = False) -> Any:
        return super().make_predict_function(force or self._is_stale("predict"))

    def _is_stale(self, name: str) -> bool:
        """Returns whether a function was compiled with another key; remembers the current key."""
        if not hasattr(self, "_compile_keys"):
            self._compile_keys = types.SimpleNamespace()  # Keras would track weights in a dict
        key = self.compile_key()
        key += tuple(weight for weight in key if getattr(weight, "trainable", False))
        before = getattr(self._compile_keys, name, ())
        setattr(self._compile_keys, name, key)
        return len(before) != len(key) or not all(map(operator.is_, before, key))


def callbacks_of(callbacks: Any) -> list[keras.callbacks.Callback]:
    """Lists the `callbacks` of `fit`, given as one, several, None or a `CallbackList`."""
    return keras.tree.flatten(getattr(callbacks, "callbacks", callbacks) or [])


def _has_labels(inputs: Any) -> bool:
    return isinstance(inputs, dict) and _LABELS in inputs


def _is_auto(value: Any) -> bool:
    return isinstance(value, str) and value == "auto"
