"""Incremental decoding: extends a batch of rows, completely or a few tokens a call."""

from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_rgemma.state.rgemma_state import state_of


class _Rows(NamedTuple):
    """Where B rows are: each one's last token and how many it may still get.

    `state` is the `ModelState` of all tokens before the last ones, or None where the sampler does
    not give it; it then follows from `before`, the rows before their `new` tokens.
    """

    last_tokens: list
    budgets: list
    state: Any
    before: Any = None
    new: Any = None


class TokenStream:
    """Lets a model go on with B rows of tokens.

    A call that is interrupted, as by Ctrl-C, leaves the rows as they were before it.

    Args:
        programs: `GenerationPrograms`.
        rows: list of B int arrays, at least one token each.
        budgets: list of B ints, how many new tokens each row may get.
        stop_token_ids: tuple of ints that end a row; may be empty.
        state: `ModelState` of what stands before the rows.
        copies: int, how many times each row stands in what comes, one after the other.
        fingerprint: of the model, if an `RGemmaState` of the rows is wanted.
    """

    def __init__(self, programs, rows, budgets, stop_token_ids, state, copies=1, fingerprint=None):
        self._fingerprint = fingerprint
        hidden, state = programs.prefill([row[:-1] for row in rows], state)
        if copies > 1:
            state = keras.tree.map_structure(lambda x: ops.repeat(x, copies, axis=0), state)
        self._programs = programs
        self._stop_token_ids = stop_token_ids
        self._hidden = hidden and [states for states in hidden for _ in range(copies)]
        self._rows = _Rows(
            [int(row[-1]) for row in rows for _ in range(copies)],
            [budget for budget in budgets for _ in range(copies)],
            state,
        )

    @property
    def is_stepwise(self):
        """Whether it may write a few tokens at a time."""
        return self._programs.is_stepwise

    @property
    def ended(self):
        """Whether every row has its stop token or has used up its budget."""
        return not any(self._rows.budgets)

    @property
    def last_tokens(self):
        """List of B ints, each row's last token."""
        return self._rows.last_tokens

    @property
    def state(self):
        """`ModelState` that has consumed all of each row but its last token."""
        if self._rows.state is None:
            self._rows = self._rows._replace(state=self._after(self._rows.before, self._rows.new))
        return self._rows.state

    def session(self):
        """The `RGemmaState` of the rows."""
        return state_of(self._fingerprint, self.last_tokens, self.state)

    def next(self, size=None):
        """Writes new tokens.

        Args:
            size: int, the most new tokens of a row; None for all that are left.

        Returns:
            A list of B int32 arrays, the stop token included, empty for rows that have ended.
        """
        state, rows = self.state, self._rows._replace(before=None, new=None)
        sizes = rows.budgets if size is None else [min(left, size) for left in rows.budgets]
        new, state = self._programs.decode(
            rows.last_tokens, sizes, self._stop_token_ids, state, self._hidden
        )
        budgets = [
            0 if len(ids) and ids[-1] in self._stop_token_ids else left - len(ids)
            for ids, left in zip(new, rows.budgets, strict=True)
        ]
        self._rows = _Rows(_last(rows, new), budgets, state, rows, new)
        return new

    def cut(self, kept):
        """Ends rows after some of their latest tokens, as if the others had never been.

        Args:
            kept: dict of a row to how many of the tokens that `next` just returned it keeps.
        """
        rows, whole = self._rows, self.state
        new = [ids[: kept.get(row)] for row, ids in enumerate(rows.new)]
        is_cut = np.array([row in kept for row in range(len(new))])

        def choose(cut, whole):
            mask = is_cut.reshape(-1, *[1] * (len(cut.shape) - 1))
            return ops.where(ops.convert_to_tensor(mask), cut, whole)

        state = keras.tree.map_structure(choose, self._after(rows.before, new), whole)
        budgets = [0 if row in kept else left for row, left in enumerate(rows.budgets)]
        self._rows = _Rows(_last(rows.before, new), budgets, state, rows.before, new)

    def _after(self, rows, new):
        """The state of rows after new tokens, read once more."""
        read = [[last, *ids][:-1] for last, ids in zip(rows.last_tokens, new, strict=True)]
        return self._programs.prefill(read, rows.state)[1]


def _last(rows, new):
    pairs = zip(rows.last_tokens, new, strict=True)
    return [int(ids[-1]) if len(ids) else last for last, ids in pairs]
