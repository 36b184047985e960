"""Computes the likelihoods of many continuations, and reads what their contexts share once."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from keras_rgemma.evaluation.generations import padded
from keras_rgemma.evaluation.prefixes import Branch, shared_beginnings
from keras_rgemma.state.rgemma_state import RGemmaState


class Likelihoods:
    """Computes the log-probabilities of continuations of contexts.

    Args:
        lm: `RGemmaCausalLM`.
        requests: list of pairs of lists of token ids: a context, of one token at least, and a
            continuation.
        batch_size: int, the rows that are read at a time.
        done: function of the index of a request and its result, called as results come.
    """

    lm: Any
    batch_size: int
    done: Callable[[int, tuple[float, bool]], object]
    contexts: list[list[int]]
    rows: list[list[int]]
    lengths: list[int]
    results: list[Any]

    def __init__(
        self,
        lm: Any,
        requests: Sequence[tuple[list[int], list[int]]],
        batch_size: int,
        done: Callable[[int, tuple[float, bool]], object] = lambda index, result: None,
    ) -> None:
        self.lm, self.batch_size, self.done = lm, batch_size, done
        self.contexts = [context for context, _ in requests]
        self.rows = [[*context, *continuation] for context, continuation in requests]
        self.lengths = [len(continuation) for _, continuation in requests]
        self.results = [None] * len(requests)

    def run(self, shares_prefixes: bool = True) -> list[tuple[float, bool]]:
        """Computes all results.

        Args:
            shares_prefixes: bool, whether a beginning that several contexts share is read once,
                into an `RGemmaState`: the results are the same to the rounding of floats.

        Returns:
            A list of pairs: the sum of the log-probabilities of a continuation's tokens, a float,
            and whether each of them is the likeliest, a bool.
        """
        everything = range(len(self.rows))
        if not shares_prefixes:
            self._score([(index, 0, 0) for index in everything], None)
            return self.results
        tree = shared_beginnings(self.contexts)
        self._score([(index, 0, 0) for index in tree.leaves], None)
        self._read(tree.branches, None, 0)
        return self.results

    def _read(self, branches: Sequence[Branch], state: RGemmaState | None, start: int) -> None:
        """Scores all rows of branches.

        Args:
            branches: list of `Branch`, which follow each other nowhere.
            state: `RGemmaState` of one row, of the `start` tokens before them; None for none.
            start: int.
        """
        branches = sorted(branches, key=lambda branch: -len(branch.tokens))
        for first in range(0, len(branches), self.batch_size):
            batch = branches[first : first + self.batch_size]
            copies = _filled([branch.tokens for branch in batch], self.batch_size)
            repeated = None if state is None else state.repeat(len(copies))
            states = self.lm.prefill(padded(copies), state=repeated)
            stops = [start + len(branch.tokens) for branch in batch]
            leaves = [
                (index, row, stops[row])
                for row, branch in enumerate(batch)
                for index in branch.leaves
            ]
            self._score(leaves, states)
            for row, branch in enumerate(batch):
                if branch.branches:
                    self._read(branch.branches, states[[row]], stops[row])

    def _score(self, leaves: Sequence[tuple[int, int, int]], states: RGemmaState | None) -> None:
        """Scores rows, the longest first.

        Args:
            leaves: list of triples of ints: the index of a row, its row of `states`, and how many
                of its tokens that has read.
            states: `RGemmaState`, or None.
        """
        leaves = sorted(leaves, key=lambda leaf: leaf[2] - len(self.rows[leaf[0]]))
        for first in range(0, len(leaves), self.batch_size):
            batch = leaves[first : first + self.batch_size]
            copies = _filled(batch, self.batch_size)
            rows = [self.rows[index][start:] or [0] for index, _, start in copies]
            state = None if states is None else states[[row for _, row, _ in copies]]
            scores = self.lm.log_probabilities(rows, state)
            for (index, _, _), score in zip(batch, scores, strict=False):  # not the copies
                self._keep(index, *score)

    def _keep(self, index: int, log_probabilities: np.ndarray, is_likeliest: np.ndarray) -> None:
        length = self.lengths[index]
        first = len(log_probabilities) - length
        total = float(log_probabilities[first:].sum(dtype="float64")) if length else 0.0
        result = total, bool(is_likeliest[first:].all()) if length else True
        self.results[index] = result
        self.done(index, result)


def _filled(batch: list[Any], batch_size: int) -> list[Any]:
    """Repeats the last element to a power of two, at most `batch_size`: few shapes to compile."""
    count = min(batch_size, 1 << (len(batch) - 1).bit_length())
    return [*batch, *batch[-1:] * (count - len(batch))]
