"""Incremental decoding: extends a batch of rows, completely or a few tokens a call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from keras_rgemma.backend import tensor_of
from keras_rgemma.generation.decode import DecodeState
from keras_rgemma.generation.programs import GenerationPrograms, new_rows, rows_of
from keras_rgemma.sharding.host import numpy_of
from keras_rgemma.state.continuing import state_of
from keras_rgemma.state.fingerprint import Fingerprint
from keras_rgemma.state.records import ModelState
from keras_rgemma.state.rgemma_state import RGemmaState
from keras_rgemma.types import Tensor


class _Rows(NamedTuple):
    """Holds the last tokens, the budgets and the state of B rows.

    `state` is the `ModelState` of all tokens before the last ones, or None where the sampler does
    not return one; it then follows from `before`, the rows before their `new` tokens. `decoding` is
    the `DecodeState` that holds the same, or None; `ahead` is None, or what
    `GenerationPrograms.start_block` has returned for the next token of each row.
    """

    last_tokens: list[int]
    budgets: list[int]
    state: ModelState | None
    before: _Rows | None = None
    new: list[np.ndarray] | None = None
    decoding: DecodeState | None = None
    ahead: tuple[Tensor, DecodeState] | None = None


class RowDecoder:
    """Extends B rows of tokens with a model.

    A call that is interrupted, as by Ctrl-C, leaves the rows as they were before the call.

    Args:
        programs: `GenerationPrograms`.
        rows: list of B int arrays, at least one token each.
        budgets: list of B ints, how many new tokens each row may get.
        stop_token_ids: tuple of ints that end a row; may be empty.
        state: `ModelState` of the tokens before the rows.
        copies: int, how many rows in succession each row becomes.
        fingerprint: function that returns the `Fingerprint` of the model as it is now, if an
            `RGemmaState` of the rows is wanted.
    """

    def __init__(
        self,
        programs: GenerationPrograms,
        rows: Sequence[np.ndarray],
        budgets: Sequence[int],
        stop_token_ids: tuple[int, ...],
        state: ModelState,
        copies: int = 1,
        fingerprint: Callable[[], Fingerprint] | None = None,
    ) -> None:
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
    def is_stepwise(self) -> bool:
        """Returns whether `next` may write a few tokens at a time."""
        return self._programs.is_stepwise

    @property
    def ended(self) -> bool:
        """Returns whether every row has its stop token or has used up its budget."""
        return not any(self._rows.budgets)

    @property
    def last_tokens(self) -> list[int]:
        """Returns the last token of each row, a list of B ints."""
        return self._rows.last_tokens

    @property
    def state(self) -> ModelState:
        """Returns the `ModelState` that has consumed all of each row but its last token."""
        if self._rows.state is None:
            self._rows = self._rows._replace(state=self._after(self._rows.before, self._rows.new))
        return self._rows.state

    def rgemma_state(self) -> RGemmaState:
        """Returns the `RGemmaState` of the rows."""
        return state_of(self._fingerprint(), self.last_tokens, self.state)

    def next(self, size: int | None = None) -> list[np.ndarray]:
        """Writes new tokens.

        Args:
            size: int, the most new tokens of a row; None for the rest of the budgets.

        Returns:
            A list of B int32 arrays, the stop token included, empty for rows that have ended.
        """
        state, rows = self.state, self._rows
        new, state, decoding, ahead = self._write(rows, state, size)
        budgets = [
            0 if len(ids) and ids[-1] in self._stop_token_ids else left - len(ids)
            for ids, left in zip(new, rows.budgets, strict=True)
        ]
        before = rows._replace(before=None, new=None, decoding=None, ahead=None)
        self._rows = _Rows(_last(rows, new), budgets, state, before, new, decoding, ahead)
        return new

    def _write(
        self, rows: _Rows, state: ModelState, size: int | None
    ) -> tuple[
        list[np.ndarray], ModelState | None, DecodeState | None, tuple[Tensor, DecodeState] | None
    ]:
        """Returns new tokens, and the last fields of the `_Rows` after them."""
        sizes = rows.budgets if size is None else [min(left, size) for left in rows.budgets]
        most = int(max(sizes))
        if most == 0:
            return [np.zeros(0, "int32") for _ in sizes], state, rows.decoding, rows.ahead
        if self._programs.has_own_loop:
            inputs = (rows.last_tokens, sizes, self._stop_token_ids, state, self._hidden)
            return self._programs.search(*inputs), None, None, None
        decoding = rows.decoding or new_rows(rows.last_tokens, rows.budgets, state)
        if size == 1 and self._programs.runs_ahead:
            return self._write_ahead(rows, decoding)
        new, decoding = self._programs.decode(decoding, most, self._stop_token_ids)
        return new, decoding.model, decoding, None

    def _write_ahead(
        self, rows: _Rows, decoding: DecodeState
    ) -> tuple[list[np.ndarray], ModelState, DecodeState, tuple[Tensor, DecodeState] | None]:
        """Writes one token a row, and dispatches the next step if a row may go on.

        So Python starts the next step, and the caller does its own work, while the GPU or the CPU
        computes.
        """
        stops, start = self._stop_token_ids, self._programs.start_block
        tokens, decoding = rows.ahead or start(stops, decoding, 1)
        ahead = start(stops, decoding, 1) if max(rows.budgets) > 1 else None
        new = rows_of(numpy_of(tokens)[:1])
        return new, decoding.model, decoding, ahead

    def cut(self, counts: Mapping[int, int]) -> None:
        """Ends rows early: drops some of the tokens that `next` just returned.

        Args:
            counts: dict of a row to the number of these tokens that it keeps; other rows go on.
        """
        rows, uncut_state = self._rows, self.state
        new = [ids[: counts.get(row)] for row, ids in enumerate(rows.new)]
        is_cut = np.array([row in counts for row in range(len(new))])

        def choose(cut: Tensor, uncut: Tensor) -> Tensor:
            mask = is_cut.reshape(-1, *[1] * (len(cut.shape) - 1))
            return ops.where(tensor_of(mask), cut, uncut)

        state = keras.tree.map_structure(choose, self._after(rows.before, new), uncut_state)
        budgets = [0 if row in counts else left for row, left in enumerate(rows.budgets)]
        self._rows = _Rows(_last(rows.before, new), budgets, state, rows.before, new)

    def _after(self, rows: _Rows, new: Sequence[np.ndarray]) -> ModelState:
        """Computes the state of rows after new tokens, by another prefill."""
        consumed = [[last, *ids][:-1] for last, ids in zip(rows.last_tokens, new, strict=True)]
        return self._programs.prefill(consumed, rows.state)[1]


def _last(rows: _Rows, new: Sequence[np.ndarray]) -> list[int]:
    """Returns the last token of each row after its new tokens, a list of ints."""
    pairs = zip(rows.last_tokens, new, strict=True)
    return [int(ids[-1]) if len(ids) else last for last, ids in pairs]
