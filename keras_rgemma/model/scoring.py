"""Computes logits and losses of given tokens: the work of `score`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_rgemma.backend import tensor_of
from keras_rgemma.generation.compiling import Programs
from keras_rgemma.generation.inputs import holds_numbers
from keras_rgemma.generation.programs import SMALLEST_BUFFER
from keras_rgemma.generation.prompts import input_rows, pad_right
from keras_rgemma.ops.cross_entropy import cross_entropy, in_chunks, of_tokens
from keras_rgemma.ops.documents import continued_positions, document_positions
from keras_rgemma.shapes import check_padding_mask, check_token_ids
from keras_rgemma.sharding.host import numpy_of
from keras_rgemma.state.continuing import consumed_by, prepend_carried_column
from keras_rgemma.state.records import ModelState
from keras_rgemma.state.rgemma_state import RGemmaState
from keras_rgemma.types import Tensor

_PADDING_MULTIPLE = 256


class Scoring:
    """Mixin for `RGemmaCausalLM` that scores tokens."""

    def score(
        self,
        token_ids: Any,
        padding_mask: Any = None,
        scoring_mode: str = "logits",
        layer_intercept_fn: Callable[..., Any] | None = None,
        target_ids: Any = None,
        *,
        state: RGemmaState | None = None,
    ) -> Tensor:
        """Computes logits or losses of tokens, as `keras_hub.models.GemmaCausalLM.score` does.

        Args:
            token_ids: int [B, T]; or texts or messages as of `prefill`, of which a single one is a
                batch of one. They are tokenized as prompts are and padded on the right, T is the
                length of the longest.
            padding_mask: int or bool [B, T]; None: no pads. Documents in a packed row are scored
                independently. Texts have their own.
            scoring_mode: "logits" or "loss".
            layer_intercept_fn: None, or a function of activations [B, T, D] and a layer's index
                (-1 for the embeddings) that returns the activations for the next layer. The layers
                then run one by one, as gradients with respect to activations need; otherwise all
                layers are one program, which on PyTorch keeps no gradients.
            target_ids: int [B, T], the tokens to predict, for the loss. The targets of texts are
                the tokens of the texts, each predicted from those before it.
            state: `RGemmaState` that the rows continue from; rows then hold tokens first, pads
                last. Activations have one more column in front, for the token that the state
                carries; of texts the result has that column, too, which predicts the first token.

        Returns:
            Float [B, T, V] for "logits", float [B, T] for "loss". Of texts with a state [B, T + 1,
            V] and [B, T + 1]. Column t is about the token after token t. A loss of texts is 0 where
            the text has no token after it, so the sum of a row is the loss of the text.

        Raises:
            ValueError: `scoring_mode` is unknown, "loss" of token ids has no targets, targets or
                the mask have another shape or belong to texts, ids are outside of the vocabulary,
                or the state belongs to another model or has another number of rows.
            TypeError: an element of the texts is no text.

        Example:
        ```python
        ids = np.array([[2, 300, 301, 302]])
        losses = lm.score(ids, scoring_mode="loss", target_ids=np.roll(ids, -1, axis=1))
        losses = lm.score(["In the beginning", "And"], scoring_mode="loss")
        ```
        """
        if scoring_mode not in ("logits", "loss"):
            raise ValueError(
                f"`scoring_mode` must be 'logits' or 'loss'. Received: {scoring_mode!r}."
            )
        self.sync_weights()
        inputs = _numpy(token_ids)
        if not holds_numbers(inputs):
            if padding_mask is not None or target_ids is not None:
                raise ValueError(
                    "`padding_mask` and `target_ids` go with token ids; texts have their own. "
                    f"Received with them: {inputs!r}."
                )
            return self._score_texts(inputs, scoring_mode, state, layer_intercept_fn)
        vocabulary_size = self.backbone.vocabulary_size
        targets = None
        if scoring_mode == "loss":
            if target_ids is None:
                raise ValueError("`scoring_mode='loss'` needs `target_ids`, the tokens to predict.")
            targets = check_token_ids(_numpy(target_ids), vocabulary_size, name="target_ids")
        ids = check_token_ids(inputs, vocabulary_size)
        mask = check_padding_mask(_numpy(padding_mask), ids.shape)
        if targets is not None and targets.shape != ids.shape:
            raise ValueError(
                f"`target_ids` must have the shape of `token_ids`, {ids.shape}. Received: "
                f"{targets.shape}."
            )
        if state is None:
            return self._score(ids, mask, targets, (), layer_intercept_fn)
        ids, mask = prepend_carried_column(state, ids, mask)
        if targets is not None:
            targets = np.pad(targets, [(0, 0), (1, 0)])
        return self._score(ids, mask, targets, consumed_by(self, state), layer_intercept_fn)[:, 1:]

    def log_probabilities(
        self, rows: Sequence[Sequence[int] | np.ndarray], state: RGemmaState | None = None
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Computes the log-probability of each token of rows from the tokens before it.

        Args:
            rows: list of B sequences of token ids, each of one at least.
            state: `RGemmaState` of B rows that they continue from.

        Returns:
            A list of B pairs of arrays: float32 log-probabilities, and bools, whether the token is
            the likeliest. Of a row of T tokens they have T - 1 elements, since nothing is before
            its first token, with a state T.

        Raises:
            ValueError: a row is empty, ids are outside of the vocabulary, or the state belongs to
                another model or has another number of rows.

        Example:
        ```python
        [(log_probabilities, is_likeliest)] = lm.log_probabilities([[2, 300, 301]])
        ```
        """
        self.sync_weights()
        if not rows or not all(map(len, rows)):
            raise ValueError(
                f"Each row needs a token. Received: {rows!r}. Leave empty rows out, or begin each "
                "with the start token."
            )
        ids, mask, consumed = self._columns(rows, state)
        ids = check_token_ids(ids, self.backbone.vocabulary_size)
        scores = self._score(
            ids, mask, np.roll(ids, -1, axis=1), consumed, None, self._token_scores
        )
        losses, hits = map(ops.convert_to_numpy, scores)
        lengths = mask.sum(axis=1) - 1
        return [
            (-losses[row, :length], hits[row, :length] > 0) for row, length in enumerate(lengths)
        ]

    def _score_texts(
        self,
        texts: Any,
        scoring_mode: str,
        state: RGemmaState | None,
        layer_intercept_fn: Callable[..., Any] | None,
    ) -> Tensor:
        """Computes logits of texts, or the loss of each token from those before it."""
        ids, mask, consumed = self._columns(*input_rows(self, texts, state))
        if scoring_mode == "logits":
            return self._score(ids, mask, None, consumed, layer_intercept_fn)
        targets = np.roll(ids, -1, axis=1)
        losses = self._score(ids, mask, targets, consumed, layer_intercept_fn)
        has_next = np.pad(mask[:, 1:], [(0, 0), (0, 1)]) > 0
        return ops.where(has_next, losses, ops.zeros_like(losses))

    def _columns(
        self, rows: Sequence[Sequence[int] | np.ndarray], state: RGemmaState | None
    ) -> tuple[np.ndarray, np.ndarray, ModelState | tuple[()]]:
        """Pads rows of tokens, behind the token that a state carries if there is one.

        Returns:
            Token ids and mask, [B, T] or with a state [B, T + 1], and the `ModelState` or ().
        """
        ids, mask = pad_right(rows, max(map(len, rows)))
        if state is None:
            return ids, mask, ()
        return *prepend_carried_column(state, ids, mask), consumed_by(self, state)

    def _score(
        self,
        ids: np.ndarray,
        mask: np.ndarray,
        targets: np.ndarray | None,
        consumed: ModelState | tuple[()],
        layer_intercept_fn: Callable[..., Any] | None,
        function: Callable[..., Any] | None = None,
    ) -> Any:
        """Computes logits [B, T, V], or losses [B, T] if there are targets.

        All layers are one program unless activations are intercepted. `function` computes another
        result, of which axis 1 is T.
        """
        rows = [ids, mask] if targets is None else [ids, mask, targets]
        function = function or (self._logits if targets is None else self._token_losses)
        if layer_intercept_fn:
            rows = map(tensor_of, rows)
            return function(self, *rows, consumed, layer_intercept_fn)
        if self._scoring_programs is None or not self._scoring_programs.are_for(self):
            self._scoring_programs = Programs(self)
        length = ids.shape[1]
        pads = [(0, 0), (0, _padded_length(length) - length)]
        rows = (tensor_of(np.pad(x, pads)) for x in rows)
        results = self._scoring_programs.compiled(function)(*rows, consumed)
        return keras.tree.map_structure(lambda x: x[:, :length], results)

    def _hidden(
        self,
        token_ids: Tensor,
        padding_mask: Tensor,
        consumed: ModelState | tuple[()] = (),
        layer_intercept_fn: Callable[..., Any] | None = None,
    ) -> Tensor:
        """Computes the final hidden states [B, T, D]."""
        if consumed:
            positions = continued_positions(padding_mask, consumed.num_tokens)
            layers = consumed.layers
        else:
            positions, layers = document_positions(padding_mask), None
        return self.backbone.call_layers(
            token_ids, positions, layers, layer_intercept_fn=layer_intercept_fn
        )

    # A program passes the model, on PyTorch a `BoundModel`, as the first argument.

    def _logits(self, _: object, *args: Any) -> Tensor:
        return self.compute_logits(self._hidden(*args))

    def _token_losses(self, *args: Any) -> Tensor:
        return self._token_scores(*args)[0]

    def _token_scores(
        self, _: object, token_ids: Tensor, padding_mask: Tensor, target_ids: Tensor, *args: Any
    ) -> tuple[Tensor, Tensor]:
        """Computes losses and hits of targets without all of the logits at a time."""
        hidden = self._hidden(token_ids, padding_mask, *args)
        head = self.backbone.token_embedding
        if head.quantization_mode:  # its logits are no product with `embeddings`
            return self._quantized_scores(hidden, target_ids)
        table = ops.cast(head.table(), hidden.dtype)
        return cross_entropy(hidden, table, target_ids, head.logit_soft_cap)

    def _quantized_scores(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        # Keras converts labels, too, to the loss' dtype: floatx may have no number for a token id.
        loss = keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, reduction="none", dtype="float32"
        )

        def scores(chunk: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            logits, labels = self.compute_logits(chunk[0]), chunk[1]
            hits = ops.equal(ops.cast(ops.argmax(logits, axis=-1), "int32"), labels)
            return loss(labels, logits), ops.cast(hits, "float32")

        chunks = in_chunks(hidden, labels, self.backbone.vocabulary_size)
        scored, hits = ops.map(scores, chunks)
        shape = ops.shape(labels)
        return of_tokens(scored, shape), of_tokens(hits, shape)


def _numpy(x: Any) -> Any:
    """Converts a tensor on any device to a NumPy array; returns other values unchanged."""
    return numpy_of(x) if ops.is_tensor(x) else x


def _padded_length(length: int) -> int:
    """Returns the padded length of a row for scoring: a power of two, or a multiple of 256."""
    power = max(SMALLEST_BUFFER, 1 << (length - 1).bit_length())
    return min(power, -(-length // _PADDING_MULTIPLE) * _PADDING_MULTIPLE)
