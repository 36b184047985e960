"""Reads what users pass to `generate`: texts, messages or arrays, in every form."""

import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_rgemma.shapes import as_array
from keras_rgemma.text.conversation import check_ends, is_conversation, read_messages
from keras_rgemma.text.forms import as_list, column_names, is_missing, is_row, is_text, read_texts


def holds_numbers(inputs: Any) -> bool:
    """Returns whether inputs are token ids: an array of numbers, or nested lists of numbers."""
    while isinstance(inputs, (list, tuple)) and inputs:
        inputs = inputs[0]
    if hasattr(inputs, "dtype"):
        return np.asarray(inputs).dtype.kind in "biuf"
    return isinstance(inputs, numbers.Number) and not is_missing(inputs)


def read_batches(inputs: Any, columns: Mapping[str, str] | None = None) -> tuple[list[Any], bool]:
    """Splits an input of `generate` into batches.

    Args:
        inputs: texts, as of `keras_rgemma.text.forms.read_texts`; messages, as of `read_messages`,
            or several lists of messages, also in a column or rows of the name "messages"; a dict
            of arrays; or a `tf.data.Dataset` of such.
        columns: dict of the preprocessor, which gives "text" and "messages" other names; or None.

    Returns:
        A list of batches, each a list of str, a list of conversations (lists of turns) or a dict of
        arrays; and whether the input was a single text or conversation.

    Raises:
        ValueError: the input is empty, or a message is malformed.
        TypeError: the input is none of these.
    """
    columns = columns or {}
    if hasattr(inputs, "as_numpy_iterator"):
        batches = [_read_batch(batch, columns)[0] for batch in inputs.as_numpy_iterator()]
        is_scalar = False
    else:
        batch, is_scalar = _read_batch(inputs, columns)
        batches = [batch]
    if not batches or not all(batches):
        raise ValueError(
            f"There must be at least one prompt. Received: {inputs!r}. For text from nothing but "
            "the start token, pass an empty string: ''."
        )
    return batches, is_scalar


def is_of_conversations(batch: object) -> bool:
    """Returns whether a batch of `read_batches` holds conversations."""
    return isinstance(batch, list) and isinstance(batch[0], list)


def _read_batch(inputs: Any, columns: Mapping[str, str]) -> tuple[Any, bool]:
    column, messages = (columns.get(name, name) for name in ("text", "messages"))
    if is_text(inputs):
        return read_texts(inputs), True
    if _holds_messages(inputs, messages, column):
        return _read_batch(inputs[messages], columns)
    if is_row(inputs) and column not in inputs:
        # A key with the value None is the same as no key.
        inputs = {key: value for key, value in inputs.items() if value is not None}
        if "token_ids" not in inputs:
            raise ValueError(
                "A dict of inputs must hold `token_ids`, and `padding_mask` if rows are padded, or "
                f"texts under `{column}`, or lists of messages under `{messages}`. Received the "
                f"keys {sorted(map(str, inputs))}."
            )
        return {key: as_array(value, key) for key, value in inputs.items()}, False
    if column_names(inputs) is None:
        inputs = as_list(inputs)
        if is_conversation(inputs):
            return [_read_conversation(inputs)], True
        if inputs and all(is_row(x) and _holds_messages(x, messages, column) for x in inputs):
            inputs = [row[messages] for row in inputs]
        if inputs and is_conversation(inputs[0]):
            names = (f"Conversation {i}" for i in range(len(inputs)))
            return list(map(_read_conversation, inputs, names)), False
    return read_texts(inputs, column=column), False


def _holds_messages(table: Any, messages: str, column: str) -> bool:
    """Returns whether a table, dict or row has messages, and neither texts nor token ids."""
    names = set(column_names(table) or ())
    if is_row(table):  # a key with the value None is the same as no key
        names = {name for name in names if table[name] is not None}
    return messages in names and names.isdisjoint({column, "token_ids"})


def _read_conversation(messages: Any, what: str = "A conversation") -> list[dict[str, str]]:
    turns = read_messages(messages, what)
    if turns[-1]["role"] == "system":
        check_ends(turns, "user", what)
    return turns
