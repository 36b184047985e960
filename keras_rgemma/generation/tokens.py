"""New tokens behind rows of tokens, all at once or a few at a time."""

import keras
import numpy as np
from keras import ops


class TokenStream:
    """Lets a model go on with B rows of tokens.

    Args:
        programs: `GenerationPrograms`.
        rows: list of B int arrays, at least one token each.
        budgets: list of B ints, how many new tokens each row may get.
        stop_token_ids: tuple of ints that end a row; may be empty.
        state: `ModelState` of what stands before the rows.
        copies: int, how many times each row stands in what comes, one after the other.
    """

    def __init__(self, programs, rows, budgets, stop_token_ids, state, copies=1):
        hidden, state = programs.prefill([row[:-1] for row in rows], state)
        if copies > 1:
            state = keras.tree.map_structure(lambda x: ops.repeat(x, copies, axis=0), state)
        self._programs = programs
        self._stop_token_ids = stop_token_ids
        self._hidden = hidden and [states for states in hidden for _ in range(copies)]
        self._budgets = [budget for budget in budgets for _ in range(copies)]
        self._last_tokens = [int(row[-1]) for row in rows for _ in range(copies)]
        self._state = state
        self._before, self._new = None, None

    @property
    def is_stepwise(self):
        """Whether it may write a few tokens at a time."""
        return self._programs.is_stepwise

    @property
    def ended(self):
        """Whether every row has its stop token or has used up its budget."""
        return not any(self._budgets)

    @property
    def last_tokens(self):
        """List of B ints, each row's last token."""
        return self._last_tokens

    @property
    def state(self):
        """`ModelState` that has consumed all of each row but its last token."""
        if self._state is None:
            self._state = self._after(self._new)
        return self._state

    def next(self, size=None):
        """Writes new tokens.

        Args:
            size: int, the most new tokens of a row; None for all that are left.

        Returns:
            A list of B int32 arrays, the stop token included, empty for rows that have ended.
        """
        sizes = self._budgets if size is None else [min(left, size) for left in self._budgets]
        self._before = self._last_tokens, self.state
        self._new, self._state = self._programs.decode(
            self._last_tokens, sizes, self._stop_token_ids, self.state, self._hidden
        )
        self._last_tokens = _last(self._last_tokens, self._new)
        self._budgets = [
            0 if len(new) and new[-1] in self._stop_token_ids else left - len(new)
            for new, left in zip(self._new, self._budgets, strict=True)
        ]
        return self._new

    def cut(self, kept):
        """Ends rows after some of their latest tokens, as if the others had never been.

        Args:
            kept: dict of a row to how many of the tokens that `next` just returned it keeps.
        """
        self._new = [new[: kept[row]] if row in kept else new for row, new in enumerate(self._new)]
        shorter = self._after(self._new)
        is_cut = np.array([row in kept for row in range(len(self._new))])

        def choose(cut, whole):
            mask = is_cut.reshape(-1, *[1] * (len(cut.shape) - 1))
            return ops.where(ops.convert_to_tensor(mask), cut, whole)

        self._state = keras.tree.map_structure(choose, shorter, self.state)
        self._last_tokens = _last(self._before[0], self._new)
        self._budgets = [
            0 if cut else left for cut, left in zip(is_cut, self._budgets, strict=True)
        ]

    def _after(self, new):
        """The state after new tokens, from the one before the latest of them."""
        last_tokens, state = self._before
        rows = [[last, *tokens][:-1] for last, tokens in zip(last_tokens, new, strict=True)]
        return self._programs.prefill(rows, state)[1]


def _last(before, new):
    return [
        int(tokens[-1]) if len(tokens) else last for last, tokens in zip(before, new, strict=True)
    ]
