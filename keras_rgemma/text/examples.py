"""Reads examples to learn from in every form: texts, prompts with responses, conversations, ids."""

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from keras_rgemma.text.forms import (
    as_list,
    column_names,
    describe_names,
    is_iterable,
    is_missing,
    is_row,
    is_text,
    read_text,
)
from keras_rgemma.text.turns import conversations, holds_turns, is_turn, read_turns

# The names of a prompt and its response: KerasHub's, and those of other libraries.
PAIRS = (("prompts", "responses"), ("prompt", "response"), ("prompt", "completion"))
# The kinds of examples with the names of their columns.
KINDS: list[tuple[str, tuple[str, ...]]] = [
    ("messages", ("messages",)),
    ("text", ("text",)),
    *(("pair", names) for names in PAIRS),
]
# The names that `columns` of a preprocessor may map to others.
RENAMED = ("prompts", "responses", "text", "messages")


class Pair(NamedTuple):
    """Holds a prompt and its response, both str."""

    prompt: str
    response: str


class Conversation(NamedTuple):
    """Holds the turns of a conversation, and how many of the first ones are not learned."""

    turns: list[dict[str, str]]
    num_prompt_turns: int = 0


class Tokens(NamedTuple):
    """Holds the token ids of a text, a list of ints."""

    ids: list[int]


Example: TypeAlias = str | Pair | Conversation | Tokens


def check_columns(columns: Mapping[str, str] | None) -> dict[str, str]:
    """Checks the argument `columns` of a preprocessor, and returns it as a dict.

    Raises:
        ValueError: it is no dict of names in `RENAMED` to str.
    """
    columns = {} if columns is None else columns
    is_named = is_row(columns) and all(isinstance(x, str) and x for x in columns.values())
    if not is_named or set(columns) - set(RENAMED):
        raise ValueError(
            f"`columns` is a dict of names among {', '.join(RENAMED)} to the names that the data "
            "have, such as {'prompts': 'instruction', 'responses': 'output'}. Received: "
            f"{columns!r}."
        )
    return dict(columns)


def read_examples(data: Any, columns: Mapping[str, str]) -> tuple[list[Example], bool]:
    """Reads examples that are in memory.

    Args:
        data: an example, a column or table of examples, or an iterable of single examples.
        columns: dict, see `check_columns`.

    Returns:
        A list of examples, and whether the data hold several (False for one without a list).

    Raises:
        TypeError: an element is no example.
        ValueError: an example is malformed, or the columns of a table are not known.
    """
    data = _row_as_dict(data, columns)
    if is_text(data):
        return [read_text(data, "An example")], False
    if is_row(data) and holds_turns(data):
        return _read_entries("messages", [data], 0)
    if column_names(data) is not None:
        return read_table(data, columns)
    values = as_list(data)
    if _is_ids(values):
        return [Tokens(values)], False
    return [read_example(value, columns, index) for index, value in enumerate(values)], True


def read_element(
    element: Any, columns: Mapping[str, str], start: int = 0
) -> tuple[list[Example], bool]:
    """Reads one element of a source: an example, or a batch of examples.

    Args:
        element: an example; a list or array of examples; a table or dict of columns; or a tuple of
            two texts, or of two columns of texts, which are prompts and responses.
        columns: dict, see `check_columns`.
        start: int, the number of the first example, for errors.

    Returns:
        A list of examples, and whether the element is a batch.

    Raises:
        TypeError, ValueError: as of `read_examples`; or labels stand beside examples.
    """
    element = _row_as_dict(element, columns)
    while isinstance(element, tuple) and len(element) in (2, 3) and element[-1] is None:
        element = element[:-1]  # labels and weights that are not there
    if isinstance(element, tuple) and len(element) == 1:
        return read_element(element[0], columns, start)
    if _is_column_pair(element):
        return _read_entries("pair", element, start)
    if isinstance(element, tuple) and not _is_one(element):
        check_no_labels(*element[1:3])
    if is_text(element):
        return [read_example(element, columns, start)], False
    if holds_turns(element):
        return _read_entries("messages", [element], start)
    if column_names(element) is not None:
        return read_table(element, columns, start)
    if is_missing(element) or not is_iterable(element):
        raise no_example(element, start)
    values = element if isinstance(element, tuple) else as_list(element)
    if isinstance(element, tuple) or _is_ids(values) or holds_turns(values):
        return [read_example(values, columns, start)], False
    return [read_example(value, columns, start + i) for i, value in enumerate(values)], True


def read_example(value: Any, columns: Mapping[str, str], index: int) -> Example:
    """Reads a single example.

    Args:
        value: a str or bytes; a tuple of prompt and response; a dict with the names of a kind; a
            list of turns; or a list or array of token ids.
        columns: dict, see `check_columns`.
        index: int, the number of the example, for errors.
    """
    value = _row_as_dict(value, columns)
    if is_text(value):
        return read_text(value, f"Example {index}")
    if isinstance(value, tuple) and len(value) == 2 and all(map(is_text, value)):
        return _example("pair", value, index)
    if not holds_turns(value) and column_names(value) is not None:
        examples, is_batch = read_table(value, columns, index)
        if is_batch:
            raise no_example(value, index, "Pass a table or a dict of columns by itself. ")
        return examples[0]
    if is_missing(value) or not is_iterable(value):
        raise no_example(value, index)
    values = value if is_row(value) or isinstance(value, tuple) else as_list(value)
    if holds_turns(values):
        return _example("messages", [values], index)
    if not _is_ids(values):
        raise TypeError(
            "A list among the examples is a conversation, of dicts with 'role' and 'content', or a "
            f"row of token ids. Received as example {index}: {value!r}. Pass texts one by one, and "
            "a prompt with its response as a dict or a pair."
        )
    return Tokens(list(values))


def read_table(
    table: Any, columns: Mapping[str, str], start: int = 0
) -> tuple[list[Example], bool]:
    """Reads the examples in a table or in a dict of columns, or the one example in a dict.

    Returns:
        A list of examples, and whether there is a column of them.
    """
    kind, names = find_columns(table, columns)
    return _read_entries(kind, [table[name] for name in names], start)


def find_columns(table: Any, columns: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """Finds the columns with examples in a table or dict.

    Args:
        table: the table or dict.
        columns: dict, see `check_columns`. Names that it gives go before the usual names, which
            count where none of its names is there.

    Returns:
        A pair of the kind of examples and the names of their columns, as in `KINDS`.

    Raises:
        ValueError: there are no such columns, or those of several kinds.
    """
    names = set(column_names(table))
    is_renamed = not names.isdisjoint(columns.values())
    kinds = _renamed_kinds(columns) if is_renamed else KINDS
    found = {(kind, wanted) for kind, wanted in kinds if names.issuperset(wanted)}
    if len(found) > 1:
        choices = sorted(" with ".join(map(repr, wanted)) for _, wanted in found)
        raise ValueError(
            f"There are several kinds of examples here: {', or '.join(choices)}. Say which to "
            "learn from, as in `RGemmaCausalLMPreprocessor(..., columns={'text': 'text'})`, or "
            "leave columns out."
        )
    if found:
        return found.pop()
    if is_renamed:
        raise ValueError(
            f"Only some of the names in `columns={columns}` of the preprocessor are here: received "
            f"{describe_names(table)}. Correct the others."
        )
    hint = ""
    if is_turn(table):
        hint = " A conversation is one example: pass it in a list, `[messages]`."
    raise ValueError(
        "An example that is a dict or a row of a table has 'text'; 'prompts' and 'responses', "
        "'prompt' and 'response', or 'prompt' and 'completion'; or 'messages'. Received one with "
        f"{describe_names(table)}.{hint} Give other names with `RGemmaCausalLMPreprocessor(..., "
        "columns={'prompts': 'instruction', 'responses': 'output'})`."
    )


def _renamed_kinds(columns: Mapping[str, str]) -> list[tuple[str, tuple[str, ...]]]:
    """Lists the kinds of examples with the names that `columns` gives, as in `KINDS`."""
    kinds = [(kind, (columns[kind],)) for kind in ("messages", "text") if kind in columns]
    if "prompts" in columns or "responses" in columns:
        kinds += [
            ("pair", (columns.get("prompts", prompt), columns.get("responses", response)))
            for prompt, response in PAIRS
        ]
    return kinds


def _row_as_dict(value: Any, columns: Mapping[str, str]) -> Any:
    """Turns a row of a pandas table, a column that is indexed by names, into a dict."""
    if not hasattr(value, "iloc") or column_names(value) is not None:
        return value
    labels = list(value.index)
    kinds = [*KINDS, *_renamed_kinds(columns)]
    is_one = any(set(labels).issuperset(wanted) for _, wanted in kinds)
    return dict(zip(labels, value, strict=True)) if is_one else value


def check_no_labels(*labels: object) -> None:
    """Raises ValueError if labels or weights (not None) were passed beside examples."""
    if any(label is not None for label in labels):
        raise ValueError(
            "Labels come from the examples. Pass `x` alone; a prompt with its response "
            "as a dict of 'prompts' and 'responses'; or, for labels and weights of your own, "
            "`token_ids`, labels and weights, as the preprocessor returns them."
        )


def no_example(value: object, index: int, hint: str = "") -> TypeError:
    """Returns the error of a value that is no example."""
    return TypeError(
        "An example is a text, a prompt with its response, a conversation or a row of token ids. "
        f"{hint}Received as example {index}: {value!r}."
    )


def _read_entries(kind: str, columns: Sequence[Any], start: int) -> tuple[list[Example], bool]:
    """Reads examples of a kind from one or two columns, or from one or two values."""
    entries = [_entries(column) for column in columns]
    lengths = [len(values) for values, _ in entries]
    is_batch = entries[0][1]
    if 0 in lengths and any(holds_turns(column) for column in columns):
        raise ValueError(
            "A prompt and its completion must have a message at least. Received: "
            f"{reprlib.repr(columns[0])} and {reprlib.repr(columns[-1])}. A conversation without a "
            "prompt is {'messages': turns}."
        )
    if len({several for _, several in entries}) > 1:
        raise ValueError(
            "There is a column on one side and one value on the other, of a prompt and a response. "
            f"Received: {reprlib.repr(columns[0])} and {reprlib.repr(columns[-1])}. Make both "
            "lists, or both single values."
        )
    if len(set(lengths)) > 1:
        raise ValueError(
            f"There are {lengths[0]} prompts and {lengths[-1]} responses. Pass a response for each "
            "prompt."
        )
    rows = zip(*(values for values, _ in entries), strict=True)
    return [_example(kind, row, start + i) for i, row in enumerate(rows)], is_batch


def _entries(value: Any) -> tuple[list[Any], bool]:
    """Lists the values of a column, or a single value; also returns whether it is a column."""
    if is_text(value) or is_missing(value) or not is_iterable(value):
        return [value], False
    if is_row(value) and not holds_turns(value):
        return [value], False
    values = value if is_row(value) else as_list(value)
    return conversations(values) if holds_turns(values) else (values, True)


def _example(kind: str, values: Sequence[Any], index: int) -> Example:
    values = [_turns(value) for value in values]
    are_turns = [isinstance(value, list) for value in values]
    if kind == "messages" and are_turns == [True]:
        return Conversation(*values)
    if kind == "pair" and are_turns == [True, True]:
        prompt, response = values
        return Conversation(prompt + response, len(prompt))
    if kind == "pair" and any(are_turns):
        raise TypeError(
            "A prompt and its completion are two texts or two lists of messages. Received as "
            f"example {index}: {values[0]!r} and {values[1]!r}."
        )
    for value in values:
        if kind == "messages" or not is_text(value):
            raise no_example(value, index)
    texts = [read_text(value, f"Example {index}") for value in values]
    return Pair(*texts) if kind == "pair" else texts[0]


def _turns(value: Any) -> Any:
    """Lists the turns of a value that is a conversation; returns other values as they are."""
    values = as_list(value) if hasattr(value, "tolist") else value
    return read_turns(values) if holds_turns(values) else value


def _is_one(element: Any) -> bool:
    """Returns whether a tuple is one example: a pair of texts, turns, or token ids."""
    is_pair = len(element) == 2 and all(map(is_text, element))
    return is_pair or holds_turns(element) or _is_ids(element)


def _is_column_pair(element: Any) -> bool:
    """Returns whether an element is a tuple of prompts and responses."""
    return (
        isinstance(element, tuple)
        and len(element) == 2
        and not any(is_text(column) or is_row(column) for column in element)
        and all(is_iterable(column) and is_text((as_list(column) or [0])[0]) for column in element)
    )


def _is_ids(values: Any) -> bool:
    """Returns whether a list or tuple holds token ids."""
    is_list = isinstance(values, (list, tuple)) and bool(values)
    return is_list and all(
        isinstance(value, (int, np.integer)) and not isinstance(value, bool) for value in values
    )
