"""Reads text of any length into a state of fixed size, chunk by chunk: the work of `prefill`."""

import numpy as np
import tqdm.auto

from keras_rgemma.generation.prompts import read_batches, token_rows
from keras_rgemma.state.rgemma_state import (
    check_lengths,
    check_rows,
    consumed_by,
    prepend_carried_token,
    state_of,
)

_BAR_DELAY = 2  # seconds


def prefill(task, inputs, state, chunk_size):
    """See `RGemmaCausalLM.prefill`."""
    pieces = _pieces(task, inputs, continued=state is not None)
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

        def consume(rows, limit):
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


def _joined(rows):
    """Joins the arrays of each row, a list of B int32 arrays."""
    return [np.concatenate(arrays).astype("int32") for arrays in rows]


def _pieces(task, inputs, continued):
    """Yields the pieces of a caller's iterator, or the one input, as lists of B int arrays."""
    if hasattr(inputs, "__next__"):
        for piece in inputs:
            is_text = isinstance(piece, (str, bytes))
            if not is_text and np.size(piece) == 0:
                continue
            rows = _rows(task, piece if is_text else np.atleast_1d(np.asarray(piece)), continued)
            if len(rows) != 1:
                raise ValueError(
                    "An iterator gives `prefill` the pieces of one text, each a str or the token "
                    f"ids of a row. Received a piece with {len(rows)} rows."
                )
            yield rows
            continued = True
    else:
        yield _rows(task, inputs, continued)


def _rows(task, inputs, continued):
    if not isinstance(inputs, dict) and (ids := _as_ids(inputs)) is not None:
        inputs = {"token_ids": ids}
    batches, _ = read_batches(inputs)
    if len(batches) > 1:
        raise ValueError(f"`prefill` takes one batch. Received {len(batches)}.")
    return token_rows(task, batches[0], continued)[0]


def _as_ids(inputs):
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
