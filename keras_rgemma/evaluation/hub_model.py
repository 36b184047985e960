"""Gives other models of KerasHub what the harness asks of RecurrentGemma."""

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_rgemma.evaluation.generations import Options, before, padded


class HubModel:
    """Wraps a `keras_hub.models.CausalLM`, which keeps no state between texts.

    Args:
        lm: the model, with its preprocessor.
    """

    lm: Any
    model: keras.Model

    def __init__(self, lm: Any) -> None:
        self.lm = lm
        self.model = keras.Model(lm.inputs, lm.outputs)  # without the preprocessor of `lm`

    def compile(self, sampler: Any) -> None:
        self.lm.compile(sampler=sampler)

    def log_probabilities(
        self, rows: Sequence[list[int]], state: None = None
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Computes as `RGemmaCausalLM.log_probabilities`, by the logits [B, T, V] of all tokens."""
        assert state is None
        arrays = padded(rows)
        ids = arrays["token_ids"]
        width = max(8, 1 << (ids.shape[1] - 1).bit_length())  # few shapes to compile
        inputs = {
            name: np.pad(x, [(0, 0), (0, width - ids.shape[1])]) for name, x in arrays.items()
        }
        logits = ops.cast(self.model.predict_on_batch(inputs), "float32")[:, : ids.shape[1] - 1]
        targets = ids[:, 1:]
        totals = ops.logsumexp(logits, axis=-1)
        chosen = ops.take_along_axis(logits, ops.convert_to_tensor(targets[..., None]), axis=-1)
        scores = ops.convert_to_numpy(chosen[..., 0] - totals)
        likeliest = ops.convert_to_numpy(ops.argmax(logits, axis=-1)) == targets
        return [
            (scores[i, : len(row) - 1], likeliest[i, : len(row) - 1]) for i, row in enumerate(rows)
        ]

    def answers(
        self, contexts: Sequence[str], lengths: Sequence[int], options: Options, batch_size: int
    ) -> Iterator[tuple[int, str]]:
        """Continues texts, batch by batch.

        Args:
            contexts: list of str.
            lengths: list of ints, the tokens of each with the start token.
            options: `Options`.
            batch_size: int.

        Yields:
            Pairs of the index of a context and the new text before its stop string.
        """
        order = sorted(range(len(contexts)), key=lambda index: -lengths[index])
        for first in range(0, len(order), batch_size):
            indices = order[first : first + batch_size]
            texts = self.lm.generate(
                [contexts[index] for index in indices],
                max_length=lengths[indices[0]] + options.max_new_tokens,
                strip_prompt=True,
            )
            for index, text in zip(indices, texts, strict=True):
                ids = np.asarray(self.lm.preprocessor.tokenizer(text))[: options.max_new_tokens]
                text = self.lm.preprocessor.tokenizer.detokenize(ids.tolist())
                yield index, before(text, options.until)
