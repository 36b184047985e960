"""Reads text of any length into a state of fixed size, chunk by chunk: the work of `prefill`."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tqdm.auto

from keras_rgemma.generation.model import GenerativeModel
from keras_rgemma.generation.prompts import input_rows
from keras_rgemma.state.continuing import (
    check_lengths,
    check_rows,
    consumed_by,
    prepend_carried_token,
    state_of,
)
from keras_rgemma.state.rgemma_state import RGemmaState
from keras_rgemma.text.conversation import is_conversation
from keras_rgemma.text.forms import is_missing, is_text, read_text

_BAR_DELAY = 2  # seconds


def prefill(
    task: GenerativeModel, inputs: Any, state: RGemmaState | None, chunk_size: int
) -> RGemmaState:
    """See `RGemmaCausalLM.prefill`."""
    pieces, state = _pieces(task, inputs, state)
    rows = next(pieces, None)
    if rows is None:
        raise ValueError("`prefill` was given an iterator without a piece. Pass some text.")
    if state is None:
        fingerprint = task.fingerprint()
        consumed, lengths = task.initial_state(len(rows)), np.zeros(len(rows), "int64")
    else:
        check_rows(state, len(rows))
        consumed, rows = consumed_by(task, state), prepend_carried_token(state, rows)
        fingerprint = state.fingerprint  # `consumed_by` found it to be the model's
        lengths = state.num_tokens - 1
    programs = task.make_generate_function()
    has_length = not hasattr(inputs, "__next__")
    with tqdm.auto.tqdm(
        total=max(map(len, rows)) if has_length else None,
        desc="Reading",
        unit=" tokens",
        unit_scale=True,
        delay=_BAR_DELAY,
        mininterval=1.0,
    ) as bar:

        def consume(rows: list[np.ndarray], limit: int) -> list[np.ndarray]:
            """Consumes up to `limit` tokens of each row but its last; returns the others."""
            nonlocal consumed
            heads = [row[: min(limit, len(row) - 1)] for row in rows]
            _, consumed = programs.prefill(heads, consumed, chunk_size, bar.update)
            return [row[len(head) :] for row, head in zip(rows, heads, strict=True)]

        unread = [[row] for row in rows]
        for more in pieces:
            for row, ids in zip(unread, more, strict=True):
                row.append(ids)
            if (ready := sum(map(len, unread[0])) - 1) >= chunk_size:
                limit = ready - ready % chunk_size
                lengths = lengths + limit
                check_lengths(lengths)
                unread = [[row] for row in consume(_joined(unread), limit)]
        rows = _joined(unread)
        check_lengths(lengths + [len(row) for row in rows])
        rows = consume(rows, max(map(len, rows)))
    return state_of(fingerprint, [row[0] for row in rows], consumed)


def _joined(rows: Iterable[list[np.ndarray]]) -> list[np.ndarray]:
    """Joins the arrays of each row, a list of B int32 arrays."""
    return [np.concatenate(arrays).astype("int32") for arrays in rows]


def _pieces(
    task: GenerativeModel, inputs: Any, state: RGemmaState | None
) -> tuple[Iterator[list[np.ndarray]], RGemmaState | None]:
    """Reads an input of `prefill`.

    Returns:
        An iterator of the pieces of a caller's iterator, or of the one input, as lists of B int
        arrays; and the state for them.
    """
    if hasattr(inputs, "__next__"):
        return _iterated(task, inputs, continued=state is not None), state
    rows, state = input_rows(task, _with_ids(inputs), state)
    return iter([rows]), state


def _iterated(
    task: GenerativeModel, pieces: Iterable[Any], continued: bool
) -> Iterator[list[np.ndarray]]:
    """Yields the pieces of an iterator of one text."""
    for index, piece in enumerate(pieces):
        if is_text(piece) or is_missing(piece):
            piece = read_text(piece, f"Piece {index}")
        elif np.size(piece) == 0:
            continue
        else:
            piece = _with_ids(np.atleast_1d(np.asarray(piece)))
        rows = [] if is_conversation(piece) else input_rows(task, piece, continued=continued)[0]
        if len(rows) != 1:
            raise ValueError(
                "An iterator gives `prefill` the pieces of one text, each a str or the token ids "
                f"of a row. Received as piece {index}: {reprlib.repr(piece)}. Several texts or "
                "messages go in a list."
            )
        yield rows
        continued = True


def _with_ids(inputs: Any) -> Any:
    """Returns token ids in a dict, as `generate` takes them, other inputs as they are."""
    ids = None if isinstance(inputs, dict) else _as_ids(inputs)
    return inputs if ids is None else {"token_ids": ids}


def _as_ids(inputs: Any) -> np.ndarray | None:
    """Returns token ids as an int array [B, T], or None for other inputs."""
    if isinstance(inputs, (str, bytes)) or hasattr(inputs, "as_numpy_iterator"):
        return None
    try:
        ids = np.asarray(inputs)
    except ValueError:  # rows of several lengths
        return None
    is_empty = ids.size == 0 and ids.ndim == 1
    if not (np.issubdtype(ids.dtype, np.integer) or is_empty):
        return None
    return ids.astype("int64")[None] if ids.ndim == 1 else ids
