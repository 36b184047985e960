"""Learns documents of any length piece by piece: truncated backpropagation through time."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping
from typing import Any, Self

import keras
from keras import ops

from keras_rgemma.config import check_count
from keras_rgemma.keras_internals.training import nested_evaluation
from keras_rgemma.model.causal_lm import RGemmaCausalLM
from keras_rgemma.model.training import callbacks_of
from keras_rgemma.text.batches import read_all
from keras_rgemma.text.documents import Rows, arrays, pieces
from keras_rgemma.text.tokenizing import documents
from keras_rgemma.types import Tensor


@keras.saving.register_keras_serializable(package="keras_rgemma")
class LongTexts(RGemmaCausalLM):
    """Trains a model whose rows continue, in each batch, from their state after the last batch.

    So the model learns a document of any length in pieces, as `pieces` cuts it: every token is
    predicted from all tokens before it, and gradients reach back to the beginning of the piece.
    The weights are shared with the model `lm`, which learns with it.

    Args:
        lm: `RGemmaCausalLM`.
        batch_size: int, B, rows of every batch.

    Call arguments:
        inputs: dict of `token_ids` and `padding_mask` [B, T], tokens first, then pads. The mask
            numbers documents: a row with the same number as in the last batch continues its
            document, and a row with another number begins a new one.

    Example:
    ```python
    long = keras_rgemma.finetuning.LongTexts(lm, batch_size=4)
    x, y, sample_weight = long.pieces([open("book.txt").read()], length=512)
    long.compile(keras_rgemma.finetuning.AdamW(1e-4))
    long.fit(x, y, sample_weight=sample_weight)
    lm.generate("In the beginning")
    ```
    """

    # KerasHub takes every class with a `backbone_cls` for a task that can be loaded from presets.
    backbone_cls = None

    def __init__(self, lm: RGemmaCausalLM, batch_size: int, **kwargs: Any) -> None:
        super().__init__(lm.backbone, preprocessor=None, **kwargs)
        self._tokens_of = lm.preprocessor
        self.batch_size = check_count("batch_size", batch_size)
        zeros = self.backbone.initial_state(self.batch_size)
        self._carried = [
            self.add_weight(
                name=f"state_{i}",
                shape=tuple(zero.shape),
                dtype=keras.backend.standardize_dtype(zero.dtype),
                initializer="zeros",
                trainable=False,
                autocast=False,
            )
            for i, zero in enumerate([*keras.tree.flatten(zeros), zeros.num_tokens])
        ]

    def get_config(self) -> dict[str, Any]:
        preprocessor = keras.saving.serialize_keras_object(self._tokens_of)
        return {**super().get_config(), "preprocessor": preprocessor, "batch_size": self.batch_size}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        config = dict(config)
        parts = {name: config.pop(name) for name in ("backbone", "preprocessor")}
        return cls(RGemmaCausalLM.from_config(parts), **config)

    def reset(self) -> None:
        """Forgets the rows of the last batch.

        Example:
        ```python
        long = keras_rgemma.finetuning.LongTexts(lm, batch_size=1)
        long.reset()
        ```
        """
        for variable in self._carried:
            variable.assign(ops.zeros(variable.shape, variable.dtype))

    def pieces(self, texts: Any, length: int) -> Rows:
        """Cuts documents into consecutive pieces, several documents beside each other.

        Args:
            texts: examples as of `RGemmaCausalLMPreprocessor`.
            length: int, T, tokens of a piece.

        Returns:
            `(x, y, sample_weight)` of arrays [N * B, T]: rows B k to B (k + 1) are a batch, whose
            rows continue the rows of the batch before.

        Example:
        ```python
        long = keras_rgemma.finetuning.LongTexts(lm, batch_size=2)
        x, y, sample_weight = long.pieces(["In the beginning", "And God said"], length=4)
        ```
        """
        preprocessor = self._tokens_of
        length = check_count("length", length)
        columns = [[] for _ in range(self.batch_size)]
        examples, _ = read_all(texts, preprocessor.columns)
        whole = documents(preprocessor, examples, length=sys.maxsize - 1)  # none is cut
        for number, document in enumerate(whole, start=1):
            shortest = min(columns, key=len)
            shortest += [{number: piece} for piece in pieces(document, length)]
        batches = itertools.zip_longest(*columns, fillvalue={})
        rows = list(itertools.chain.from_iterable(batches))
        return arrays(rows, length, preprocessor.tokenizer.pad_token_id)

    def fit(
        self,
        x: Any,
        y: Any,
        sample_weight: Any | None = None,
        validation_data: tuple[Any, ...] | None = None,
        callbacks: Any = None,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """Trains on pieces in their order; every epoch begins without a state.

        Args:
            x, y, sample_weight: as `pieces` returns them.
            validation_data: tuple of such arrays.
            callbacks, **kwargs: of `keras.Model.fit`, without `batch_size` and `validation_split`.

        Raises:
            ValueError: the rows are no whole batches, or one of these two arguments was passed.

        Example:
        ```python
        long = keras_rgemma.finetuning.LongTexts(lm, batch_size=1)
        long.compile(keras_rgemma.finetuning.AdamW(1e-4))
        x, y, sample_weight = long.pieces(["In the beginning was the word"], length=4)
        long.fit(x, y, sample_weight=sample_weight, epochs=2)
        ```
        """
        for rows in (y, *(validation_data or ())[1:2]):
            self._check(rows, kwargs)
        begin = keras.callbacks.LambdaCallback(on_epoch_begin=lambda *_: self.reset())
        return super().fit(
            x,
            y,
            batch_size=self.batch_size,
            sample_weight=sample_weight,
            validation_data=validation_data,
            callbacks=[begin, *callbacks_of(callbacks)],
            shuffle=False,
            **kwargs,
        )

    def evaluate(
        self, x: Any, y: Any = None, sample_weight: Any | None = None, **kwargs: Any
    ) -> Any:
        """Computes the loss and metrics on pieces in their order, from the beginning.

        Example:
        ```python
        long = keras_rgemma.finetuning.LongTexts(lm, batch_size=1)
        x, y, sample_weight = long.pieces(["In the beginning was the word"], length=4)
        long.evaluate(x, y, sample_weight=sample_weight, return_dict=True)
        ```
        """
        if not nested_evaluation(kwargs):
            self._check(y, kwargs)
        before = [ops.copy(variable.value) for variable in self._carried]
        self.reset()
        try:
            kwargs["batch_size"] = self.batch_size
            return super().evaluate(x, y, sample_weight=sample_weight, **kwargs)
        finally:
            for variable, value in zip(self._carried, before, strict=True):
                variable.assign(value)

    def _check(self, rows: Any, settings: Mapping[str, Any]) -> None:
        for name in {"batch_size", "validation_split"} & {*settings}:
            raise ValueError(
                f"`{name}` is no setting here: a batch goes on from the one before, and has "
                f"batch_size={self.batch_size} rows. Make validation data with `pieces`."
            )
        if len(rows) % self.batch_size:
            raise ValueError(
                f"There are {len(rows)} rows, which are no whole batches of {self.batch_size}. "
                "Pass what `pieces` returns, or a multiple of that many rows."
            )

    def hidden_states(self, inputs: dict[str, Any], training: bool | None) -> Tensor:
        *arrays, last_number = (ops.convert_to_tensor(variable) for variable in self._carried)
        token_ids, mask = (ops.convert_to_tensor(inputs[x]) for x in ("token_ids", "padding_mask"))
        mask = ops.cast(mask, "int32")
        number = ops.max(mask, axis=1)
        goes_on = ops.logical_or(number == last_number, number == 0)

        def continued(array: Tensor) -> Tensor:
            shape = (-1,) + (1,) * (len(array.shape) - 1)
            return ops.where(ops.reshape(goes_on, shape), array, ops.zeros_like(array))

        like = self.backbone.initial_state(self.batch_size)
        state = keras.tree.pack_sequence_as(like, [continued(array) for array in arrays])
        hidden, state = self.backbone.step(token_ids, mask, state)
        number = ops.where(number > 0, number, last_number)
        carried = [*keras.tree.flatten(state), number]
        for variable, value in zip(self._carried, carried, strict=True):
            variable.assign(ops.stop_gradient(ops.cast(value, variable.dtype)))
        return hidden
