"""Continues texts from a state: checks that it fits, and puts the carried token before new ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_rgemma.backend import tensor_of
from keras_rgemma.shapes import check_one_document
from keras_rgemma.sharding.host import numpy_of
from keras_rgemma.state.fingerprint import Fingerprint
from keras_rgemma.state.records import ModelState
from keras_rgemma.state.rgemma_state import RGemmaState, check_is_state

MOST_TOKENS = 2**31 - 2**23  # in one text: positions are int32, and one call writes up to 2^22


def consumed_by(task: Any, state: RGemmaState) -> ModelState:
    """Returns the `ModelState` of a state, in the dtypes of a model.

    Args:
        task: a `keras.Model` with `fingerprint()` and `state_specification()`.
        state: `RGemmaState`.

    Raises:
        TypeError: `state` is no state.
        ValueError: the state does not fit the model.
    """
    check_is_state(state)
    if reason := state.fingerprint.difference(task.fingerprint()):
        raise ValueError(
            f"This state belongs to another model: {reason}. Load the model that made it, or read "
            "the text again with `prefill`."
        )
    expected = task.state_specification()
    shapes = [tuple(array.shape[1:]) for array in keras.tree.flatten(state.consumed)]
    if shapes != [tuple(array.shape[1:]) for array in keras.tree.flatten(expected)]:
        raise ValueError(
            f"The arrays of this state have other shapes than this model's: {shapes}. Load the "
            "model that made it, or read the text again with `prefill`."
        )
    return keras.tree.map_structure(
        lambda array, like: ops.cast(array, like.dtype), state.consumed, expected
    )


def check_rows(state: RGemmaState, count: int) -> None:
    """Raises ValueError if a state has not `count` rows, TypeError if it is no state."""
    check_is_state(state)
    if state.batch_size != count:
        raise ValueError(
            f"The state holds {state.batch_size} rows, but {count} were given to go on with. Use "
            "`state.repeat(n)` for several continuations of each row, or `state[i]` for one row."
        )


def prepend_carried_token(state: RGemmaState, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Prepends the token that a state carries to each row of tokens.

    Args:
        state: `RGemmaState` of B rows.
        rows: list of B int arrays.

    Raises:
        ValueError: a text would have more tokens than an int32 position can count.
    """
    check_lengths(state.num_tokens + [len(row) for row in rows])
    last = numpy_of(state.last_token_ids)[:, None]
    pairs = zip(last, rows, strict=True)
    return [np.concatenate(pair).astype("int32") for pair in pairs]


def prepend_carried_column(
    state: RGemmaState, token_ids: np.ndarray, padding_mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Prepends the tokens that a state carries, as a column, to arrays of rows.

    Args:
        state: `RGemmaState` of B rows.
        token_ids: int32 [B, T].
        padding_mask: int32 [B, T], tokens first.

    Returns:
        Two int32 arrays [B, T + 1].

    Raises:
        ValueError: another number of rows, pads before tokens, or several documents in a row.
    """
    check_rows(state, len(token_ids))
    check_one_document(padding_mask, may_be_empty=True)
    is_late = (np.diff((padding_mask > 0).astype(int), axis=1, prepend=1) > 0).any(axis=1)
    if is_late.any():
        raise ValueError(
            "Behind a state the tokens of a row come first, then its pads. Received a pad before a "
            f"token in row {int(is_late.argmax())}. Move the pads of each row to its end."
        )
    check_lengths(state.num_tokens + token_ids.shape[1])
    last = numpy_of(state.last_token_ids)
    mask = np.pad(padding_mask > 0, ((0, 0), (1, 0)), constant_values=True)
    return np.hstack([last[:, None], token_ids]), mask.astype("int32")


def check_lengths(lengths: np.ndarray) -> None:
    """Raises ValueError if a text would have more tokens than an int32 position can count."""
    if max(lengths) > MOST_TOKENS:
        raise ValueError(
            f"A text has at most {MOST_TOKENS:,} tokens. This has {max(lengths):,}. Begin anew "
            "with a part of it."
        )


def state_of(
    fingerprint: Fingerprint, last_tokens: Sequence[int], consumed: ModelState
) -> RGemmaState:
    """Makes the `RGemmaState` of rows.

    Args:
        fingerprint: `Fingerprint` of the model at the time when it read the rows.
        last_tokens: list of B ints, the last token of each row.
        consumed: `ModelState` of the tokens before the last one.
    """
    last = tensor_of(np.array(last_tokens, "int32"))
    return RGemmaState(last, consumed, fingerprint)
