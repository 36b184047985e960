"""Training and evaluation of a language model without all of its logits at a time."""

import functools
import operator
import pathlib
import types

import keras
from keras import ops

from keras_rgemma.backend import implementation_key
from keras_rgemma.checkpoints import backup
from keras_rgemma.files import new_file
from keras_rgemma.keras_internals.layers import variables_created_trainable, with_attributes
from keras_rgemma.keras_internals.training import (
    backup_files,
    forget_initial_epoch,
    nested_evaluation,
    sync_weights,
)
from keras_rgemma.layers.lora import lora_layers
from keras_rgemma.lora import files
from keras_rgemma.model.losses import TokenAccuracy, TokenCrossEntropy
from keras_rgemma.model.preprocessor import RGemmaCausalLMPreprocessor
from keras_rgemma.ops.cross_entropy import cross_entropy
from keras_rgemma.text.datasets import arrays_of, is_dataset, is_of_arrays, is_sliced
from keras_rgemma.text.examples import check_no_labels

_LABELS = "keras_rgemma/labels"  # of a step, among its inputs


class Training:
    """Mixin for a KerasHub causal language model that trains it without all of its logits.

    In a step of training or evaluation, the model gives the loss and the hit of each token instead
    of its logits, and these go through Keras' own losses and metrics from there on.
    """

    _is_chunked = False
    _backups = ()
    _were_auto = ()  # which arguments of `compile`

    def compile(self, optimizer="auto", loss="auto", *, weighted_metrics="auto", **kwargs):
        own = ("metrics", "loss_weights")
        is_auto = _is_auto(loss) and (_is_auto(weighted_metrics) or not weighted_metrics)
        self._is_chunked = is_auto and not any(kwargs.get(name) for name in own)
        super().compile(
            optimizer,
            TokenCrossEntropy() if _is_auto(loss) else loss,
            weighted_metrics=[TokenAccuracy()] if _is_auto(weighted_metrics) else weighted_metrics,
            **kwargs,
        )
        arguments = {"loss": loss, "weighted_metrics": weighted_metrics}
        self._were_auto = tuple(name for name, value in arguments.items() if _is_auto(value))

    def get_compile_config(self):
        config = super().get_compile_config()
        return {**config, **dict.fromkeys(self._were_auto, "auto")} if config else config

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    # === Examples ===

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        sample_weight=None,
        validation_data=None,
        **kwargs,
    ):
        """Trains the model, as `keras.Model.fit` does.

        Args:
            x: what the preprocessor takes: texts, a dict of `prompts` and `responses`, a list of
                conversations (see `RGemmaCausalLMPreprocessor`); an iterable of single examples; a
                `tf.data` or grain dataset of batches of texts or of such dicts; or, preprocessed, a
                dict of `token_ids` and `padding_mask`, with `y` and `sample_weight`. All but
                datasets that are not packed is tokenized before training, and shuffled unless
                `shuffle` is False. Datasets keep their order.
            y, sample_weight: of what is preprocessed; examples bring their own.
            batch_size, validation_data, **kwargs: of `keras.Model.fit`.

        Raises:
            ValueError: malformed examples, or `y` or `sample_weight` beside examples.
        """
        data, batch_size = self._prepared((x, y, sample_weight), batch_size)
        if validation_data is not None:
            is_tuple = isinstance(validation_data, tuple)
            validation_data = validation_data if is_tuple else (validation_data,)
            validation_data, _ = self._prepared(validation_data, None)
            if is_dataset(validation_data[0]):
                (validation_data,) = validation_data
        x, y, sample_weight = data
        self._backups = backup.backups(callbacks_of(kwargs.get("callbacks")))
        for each in self._backups:
            backup.mend(each)
        # KerasHub makes a dataset of everything, which Keras does not shuffle.
        fit = functools.partial(keras.Model.fit, self)
        if not (_is_of_tensors(data) and _is_of_tensors(validation_data)):
            fit = super().fit
        try:
            return fit(
                x=x,
                y=y,
                batch_size=batch_size,
                sample_weight=sample_weight,
                validation_data=validation_data,
                **kwargs,
            )
        finally:
            self._backups = ()
            forget_initial_epoch(self)  # which Keras would keep for the `fit` after this, too

    def evaluate(self, x=None, y=None, batch_size=None, sample_weight=None, **kwargs):
        """The loss and metrics on data in any of the forms that `fit` takes."""
        if not nested_evaluation(kwargs):
            (x, y, sample_weight), batch_size = self._prepared((x, y, sample_weight), batch_size)
        return super().evaluate(
            x=x, y=y, batch_size=batch_size, sample_weight=sample_weight, **kwargs
        )

    def save_weights(self, filepath, overwrite=True, **kwargs):
        """Writes the weights, LoRA's beside those below them, as `keras.Model.save_weights` does.

        A file takes its name when it is complete: with `keras.callbacks.BackupAndRestore`, training
        that is killed at any moment goes on from the last epoch that was saved as a whole. (With an
        int as its `save_freq`, Keras begins the epoch of the last backup anew.)
        """
        is_file = str(filepath).endswith(".weights.h5") and "://" not in str(filepath)
        if not (is_file and overwrite) or kwargs.get("max_shard_size"):
            return super().save_weights(filepath, overwrite, **kwargs)
        with new_file(filepath) as partial:
            super().save_weights(partial, **kwargs)
            for each in self._backups:
                if pathlib.Path(filepath) == backup_files(each)[0]:
                    backup.sign(partial, each)

    def load_weights(self, filepath, skip_mismatch=False, **kwargs):
        """Reads weights, as `keras.Model.load_weights` does.

        Raises:
            ValueError: LoRA of another rank, before anything has changed; or weights of another
                model, after which A and B are what they were.
        """
        with files.keeping_lora(self.backbone, filepath, skip_mismatch):
            super().load_weights(filepath, skip_mismatch, **kwargs)

    def predict(self, x=None, batch_size=None, **kwargs):
        """Logits [B, T, V] of each example, in a row of its own, as `keras.Model.predict` does."""
        preprocessor = self.preprocessor
        if getattr(preprocessor, "packing", False) and not (_is_prepared(x) or _is_one_text(x)):
            preprocessor.build(None)
            unpacked = with_attributes(preprocessor, packing=False)
            if is_dataset(x):
                x = _mapped(x, unpacked)
            else:
                x = unpacked(x)[0] if is_sliced(x) else arrays_of(unpacked, x)[0][0]
        return super().predict(x, batch_size, **kwargs)

    def preprocess_samples(self, x, y=None, sample_weight=None):
        if _is_prepared(x):
            return keras.utils.pack_x_y_sample_weight(x, y, sample_weight)
        return super().preprocess_samples(x, y, sample_weight)

    def _prepared(self, data, batch_size):
        """Tokenizes examples, but datasets; returns `(x, y, sample_weight)` and a batch size."""
        x, *labels = data
        preprocessor = self.preprocessor
        if not isinstance(preprocessor, RGemmaCausalLMPreprocessor) or _is_prepared(x):
            return data, batch_size
        check_no_labels(*labels)  # some of which Keras would drop
        if is_dataset(x):
            is_kept = is_of_arrays if preprocessor.packing else is_sliced
        else:
            is_kept = _is_one_text  # which Keras refuses
        if is_kept(x):
            return data, batch_size
        data, size = arrays_of(preprocessor, x)
        return data, batch_size or size

    # === Steps ===

    def call(self, inputs, training=None, mask=None):
        if not _has_labels(inputs):
            return super().call(inputs, training=training, mask=mask)
        inputs = dict(inputs)
        labels = inputs.pop(_LABELS)
        hidden = self.hidden_states(inputs, training)
        head = self.backbone.token_embedding
        if head.quantization_mode:
            # Keras rounds what is multiplied with it, too, which lets no gradient through.
            table = head(ops.arange(self.backbone.vocabulary_size))
        else:
            table = head.embeddings
        losses, hits = cross_entropy(
            ops.reshape(hidden, (-1, hidden.shape[-1])),
            ops.cast(table, hidden.dtype),
            ops.reshape(labels, (-1,)),
            head.logit_soft_cap,
            needs_embedding_gradient=bool(head.trainable_variables) and not head.quantization_mode,
        )
        shape = ops.shape(hidden)[:2]
        return {"losses": ops.reshape(losses, shape), "hits": ops.reshape(hits, shape)}

    def hidden_states(self, inputs, training):
        """The final hidden states [B, T, D] of a step."""
        return self.backbone(inputs, training=training)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        y_pred = y_pred["losses"] if isinstance(y_pred, dict) else y_pred
        return super().compute_loss(x, y, y_pred, sample_weight, training)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        y_pred = y_pred["hits"] if isinstance(y_pred, dict) else y_pred
        return super().compute_metrics(x, y, y_pred, sample_weight)

    # The data come last on each backend; JAX has the state before them.

    def train_step(self, *inputs):
        *state, data = inputs
        data = self._labelled(data)
        if self.backbone.token_embedding.quantization_mode and not _has_labels(data[0]):
            raise ValueError(
                "No gradient comes through the logits of a quantized embedding. Leave `loss` "
                "and `weighted_metrics` of `compile` at 'auto' and pass no `metrics` or "
                "`loss_weights`, or quantize with "
                "`filters=lambda layer: layer is not lm.backbone.token_embedding`."
            )
        return super().train_step(*state, data)

    def test_step(self, *inputs):
        *state, data = inputs
        return super().test_step(*state, self._labelled(data))

    def _labelled(self, data):
        """Adds the labels of a step to its inputs: the model then returns losses and hits."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        if self._is_chunked and isinstance(x, dict) and len(getattr(y, "shape", ())) == 2:
            x = {**x, _LABELS: y}
        return x, y, sample_weight

    def sync_weights(self):
        """Writes the weights back into their variables in a callback of `fit`.

        Between the batches of an epoch Keras on JAX keeps them elsewhere, until it is told.
        """
        sync_weights(self)

    # === Programs, which LoRA makes stale ===

    def compile_key(self):
        """Lists what a compiled program depends on, a tuple of objects compared by identity."""
        alphas = (layer.lora_alpha for layer in lora_layers(self.backbone))
        return (*self.weights, *alphas, implementation_key())

    def make_train_function(self, force=False):
        self._check_optimizer()
        return super().make_train_function(force or self._is_stale("train"))

    def make_test_function(self, force=False):
        return super().make_test_function(force or self._is_stale("test"))

    def make_predict_function(self, force=False):
        return super().make_predict_function(force or self._is_stale("predict"))

    def _is_stale(self, name):
        """True if the compiled function was made for other settings; remembers the current ones."""
        if not hasattr(self, "_made_for"):
            self._made_for = types.SimpleNamespace()  # Keras takes weights in a dict for its own
        settings = self.compile_key()
        settings += tuple(weight for weight in settings if getattr(weight, "trainable", False))
        before = getattr(self._made_for, name, ())
        setattr(self._made_for, name, settings)
        return len(before) != len(settings) or not all(map(operator.is_, before, settings))

    def _check_optimizer(self):
        """Makes an optimizer anew that was made for other weights and has trained none of them.

        Raises:
            ValueError: it has trained them.
        """
        optimizer = getattr(self, "optimizer", None)
        if optimizer is None or not optimizer.built:
            return
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        known = {id(variable) for variable in variables_created_trainable(inner)}
        if known == {id(variable) for variable in self.trainable_variables}:
            return
        if int(ops.convert_to_numpy(optimizer.iterations.value)):
            raise ValueError(
                "Other weights are trained now than those that the optimizer was made for, as "
                "after `enable_lora` or `merge_lora`. Call `compile` before `fit`."
            )
        self.optimizer = type(optimizer).from_config(optimizer.get_config())
        self.optimizer.build(self.trainable_variables)


def callbacks_of(callbacks):
    """The `callbacks` of `fit` as a list, whether one, several, None or a `CallbackList`."""
    return keras.tree.flatten(getattr(callbacks, "callbacks", callbacks) or [])


def _is_prepared(x):
    return isinstance(x, dict) and "token_ids" in x


def _has_labels(inputs):
    return isinstance(inputs, dict) and _LABELS in inputs


def _mapped(dataset, preprocessor):
    """Maps a preprocessor over the batches of a dataset, and leaves out labels."""
    if is_of_arrays(dataset):
        return dataset
    if hasattr(dataset, "element_spec"):  # of `tf.data`, which gives the parts of a tuple alone
        return dataset.map(lambda *data: preprocessor(*data)[0])
    return dataset.map(lambda x: preprocessor(x)[0])


def _is_of_tensors(data):
    """True if data are None, or a tuple of arrays that Keras can slice and shuffle."""
    leaves = [leaf for leaf in keras.tree.flatten(data) if leaf is not None]
    is_prepared = data is None or (isinstance(data, tuple | list) and _is_prepared(data[0]))
    return is_prepared and all(getattr(leaf, "shape", ()) for leaf in leaves)


def _is_one_text(x):
    return isinstance(x, (str, bytes)) or getattr(x, "shape", None) == ()


def _is_auto(value):
    return isinstance(value, str) and value == "auto"
