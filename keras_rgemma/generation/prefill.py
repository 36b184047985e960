"""Reads text of any length into a state of fixed size, chunk by chunk: the work of `prefill`."""

import numpy as np
import tqdm.auto

from keras_rgemma.generation.prompts import (
    conversation_rows,
    is_of_conversations,
    read_batches,
    token_rows,
)
from keras_rgemma.state.rgemma_state import (
    check_lengths,
    check_rows,
    consumed_by,
    prepend_carried_token,
    state_of,
)
from keras_rgemma.text.forms import is_missing, is_text, read_text

_BAR_DELAY = 2  # seconds


def prefill(task, inputs, state, chunk_size):
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


def _pieces(task, inputs, state):
    """Reads an input of `prefill`.

    Returns:
        An iterator of the pieces of a caller's iterator, or of the one input, as lists of B int
        arrays; and the state for them.
    """
    if hasattr(inputs, "__next__"):
        return _iterated(task, inputs, continued=state is not None), state
    batch = _batch(inputs)
    if not is_of_conversations(batch):
        return iter([token_rows(task, batch, state is not None)[0]]), state
    rows, state = conversation_rows(task, batch, state)
    return iter([rows]), state


def _iterated(task, pieces, continued):
    """Yields the pieces of an iterator of one text."""
    for index, piece in enumerate(pieces):
        if is_text(piece) or is_missing(piece):
            batch = [read_text(piece, f"Piece {index}")]
        elif np.size(piece) == 0:
            continue
        else:
            batch = _batch(np.atleast_1d(np.asarray(piece)))
        rows, _ = token_rows(task, batch, continued)
        if len(rows) != 1:
            raise ValueError(
                "An iterator gives `prefill` the pieces of one text, each a str or the token "
                f"ids of a row. Received a piece with {len(rows)} rows. Pass several texts as "
                "a list."
            )
        yield rows
        continued = True


def _batch(inputs):
    """Reads the one batch of an input: a list of str, of conversations, or a dict of arrays."""
    if not isinstance(inputs, dict) and (ids := _as_ids(inputs)) is not None:
        inputs = {"token_ids": ids}
    batches, _ = read_batches(inputs)
    if len(batches) > 1:
        raise ValueError(f"`prefill` takes one batch. Received {len(batches)}.")
    return batches[0]


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
