"""Text of any length into a state of fixed size, piece by piece."""

import numpy as np
import tqdm.auto

from keras_rgemma.generation.prompts import read_batches, rows_in
from keras_rgemma.state.rgemma_state import (
    check_lengths,
    check_rows,
    consumed_by,
    prepend_carried_token,
    state_of,
)

_SHOWN_AFTER = 2  # seconds


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
        fingerprint = state.fingerprint  # which was just found to be the model's
        lengths = state.num_tokens - 1
    programs = task.make_generate_function()
    is_known = not hasattr(inputs, "__next__")
    with tqdm.auto.tqdm(
        total=max(map(len, rows)) if is_known else None,
        desc="Reading",
        unit=" tokens",
        unit_scale=True,
        delay=_SHOWN_AFTER,
        mininterval=1.0,
    ) as bar:

        def read(rows, most):
            """Reads at most so many tokens of each row, and leaves one at least."""
            nonlocal consumed
            parts = [row[: min(most, len(row) - 1)] for row in rows]
            _, consumed = programs.prefill(parts, consumed, chunk_size, bar.update)
            return [row[len(part) :] for row, part in zip(rows, parts, strict=True)]

        waiting = [[row] for row in rows]
        for more in pieces:
            for row, ids in zip(waiting, more, strict=True):
                row.append(ids)
            if (ready := sum(map(len, waiting[0])) - 1) >= chunk_size:
                whole = ready - ready % chunk_size
                lengths = lengths + whole
                check_lengths(lengths)
                waiting = [[row] for row in read(_joined(waiting), whole)]
        rows = _joined(waiting)
        check_lengths(lengths + [len(row) for row in rows])
        rows = read(rows, max(map(len, rows)))
    return state_of(fingerprint, [row[0] for row in rows], consumed)


def _joined(waiting):
    return [np.concatenate(parts).astype("int32") for parts in waiting]


def _pieces(task, inputs, continued):
    """Lists of B int arrays, the tokens of each row."""
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
    return rows_in(task, batches[0], continued)[0]


def _as_ids(inputs):
    """An int array [B, T] of token ids that were given as they are; None for anything else."""
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
