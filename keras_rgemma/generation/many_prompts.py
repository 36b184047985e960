"""Continues any number of prompts in a few rows: a row that has ended takes the next prompt."""

from typing import Any

import numpy as np
import tqdm.auto

from keras_rgemma.backend import tensor_of
from keras_rgemma.generation.decode import BLOCK, NO_TOKEN
from keras_rgemma.generation.model import GenerativeModel
from keras_rgemma.generation.outputs import without_end_of_turn
from keras_rgemma.generation.programs import GenerationPrograms, new_rows
from keras_rgemma.generation.prompts import Batch
from keras_rgemma.generation.text_deltas import TextDeltas
from keras_rgemma.state.records import ModelState

# Tokens between two looks at the rows while prompts wait and a token or a string may end a row.
LOOK = 8
_BAR_DELAY = 2  # seconds


class ManyPrompts:
    """Continues the prompts of a `Batch` in a fixed number of rows.

    A prompt is read alone, and its state takes the place of a row that has ended. So the tokens of
    a prompt are those that it gets alone, and no row waits for the longest of its neighbours.

    Args:
        task: `GenerativeModel`.
        programs: `GenerationPrograms` of the model, whose sampler writes token by token.
        batch: `Batch` of N prompts.
        beginning: `ModelState` of one row, which every prompt continues from.
        size: int, the most rows at a time.
    """

    def __init__(
        self,
        task: GenerativeModel,
        programs: GenerationPrograms,
        batch: Batch,
        beginning: ModelState,
        size: int,
    ) -> None:
        self._task, self._programs, self._batch = task, programs, batch
        self._beginning = beginning
        count = len(batch.rows)
        self._new = [[] for _ in range(count)]  # arrays of tokens
        self._texts = [TextDeltas(self._decode, batch.request.stop) for _ in range(count)]
        self._cut_texts = [""] * count
        self._left = np.array(batch.budgets)
        # Long ones first: at the end, few rows are left without a prompt.
        order = sorted(np.flatnonzero(self._left), key=lambda prompt: -self._left[prompt])
        self._waiting = order[::-1]
        size = max(1, min(size, len(order)))
        self._prompts = [None] * size
        self._state = new_rows([0] * size, [0] * size, task.initial_state(size))

    def run(self) -> tuple[list[np.ndarray], list[int]]:
        """Writes everything.

        Returns:
            A list of N int32 arrays, the new tokens, the stop token included; and a list of N ints,
            the length of the text to cut off from a stop string on.
        """
        with tqdm.auto.tqdm(
            total=len(self._new), desc="Writing", unit=" prompts", delay=_BAR_DELAY, mininterval=1.0
        ) as bar:
            bar.update(int((self._left == 0).sum()))
            while self._waiting or any(prompt is not None for prompt in self._prompts):
                self._fill()
                bar.update(self._advance())
        new = [np.concatenate([np.zeros(0, "int32"), *arrays]) for arrays in self._new]
        return new, [self._surplus(prompt) for prompt in range(len(new))]

    def _fill(self) -> None:
        """Reads waiting prompts into the rows that have none."""
        for row, prompt in enumerate(self._prompts):
            if prompt is None and self._waiting:
                self._prompts[row] = prompt = self._waiting.pop()
                ids = self._batch.rows[prompt]
                _, model = self._programs.prefill([ids[:-1]], self._beginning)
                one = new_rows(ids[-1:], [self._left[prompt]], model)
                self._state = self._programs.put_row(self._state, row, one)

    def _advance(self) -> int:
        """Writes tokens in all rows up to the next look; returns how many prompts have ended."""
        lefts = [self._left[prompt] for prompt in self._prompts if prompt is not None]
        size = min(BLOCK, max(lefts))
        if self._waiting:
            size = min(size, *lefts)
            if self._batch.request.stop_token_ids or self._batch.request.stop:
                size = min(size, LOOK)
        stops = self._batch.request.stop_token_ids
        tokens, self._state = self._programs.run_block(stops, self._state, int(size))
        ended = [
            row
            for row, prompt in enumerate(self._prompts)
            if prompt is not None and self._extend(prompt, tokens[:, row])
        ]
        for row in ended:
            self._prompts[row] = None
        if ended:  # the program does not know of stop strings
            is_free = np.array([prompt is None for prompt in self._prompts])
            self._state = self._state._replace(ended=tensor_of(is_free))
        return len(ended)

    def _extend(self, prompt: int, column: np.ndarray) -> bool:
        """Adds the tokens of a block to a prompt's; returns whether its text has ended."""
        request = self._batch.request
        ids = column[column != NO_TOKEN]
        if request.stop:
            delta, count = self._texts[prompt].extend(without_end_of_turn(ids, request))
            self._cut_texts[prompt] += delta
            if self._texts[prompt].stopped:
                ids = ids[:count]
        self._new[prompt].append(ids)
        self._left[prompt] -= len(ids)
        is_last = len(ids) and int(ids[-1]) in request.stop_token_ids
        return is_last or self._texts[prompt].stopped or self._left[prompt] <= 0

    def _surplus(self, prompt: int) -> int:
        if not self._batch.request.stop:
            return 0
        ids = without_end_of_turn(np.concatenate(self._new[prompt] or [[]]), self._batch.request)
        cut = self._cut_texts[prompt] + self._texts[prompt].rest()
        return len(self._decode(ids)) - len(cut)

    def _decode(self, ids: Any) -> str:
        return self._task.preprocessor.text_of([ids])[0]
