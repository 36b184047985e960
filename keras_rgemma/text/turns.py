"""Reads conversations in every form that datasets keep lists of turns in."""

from collections.abc import Mapping
from typing import Any

from keras_rgemma.text.forms import as_list, is_row, is_text


def is_turn(value: Any) -> bool:
    """Returns whether a value is a turn, or a dict with the roles and contents of several."""
    return is_row(value) and "role" in value and "content" in value


def holds_turns(value: Any) -> bool:
    """Returns whether a value is a conversation: turns, or a dict of their roles and contents."""
    if is_row(value):
        return is_turn(value) and not is_text(value["role"])
    return isinstance(value, (list, tuple)) and bool(value) and all(map(is_turn, value))


def conversations(value: Any) -> tuple[list[Any], bool]:
    """Splits a value that `holds_turns` into conversations.

    Turns whose roles and contents are lists belong to several conversations, as torch and grain
    make batches of them; so does a dict whose roles are lists of lists.

    Returns:
        A list of conversations as of `read_turns`, and whether the value holds several.
    """
    if is_row(value):
        roles = as_list(value["role"])
        is_batch = bool(roles) and not is_text(roles[0])
        return (_split(value), True) if is_batch else ([value], False)
    if is_text(value[0]["role"]):
        return [value], False
    return [list(turns) for turns in zip(*map(_split, value), strict=True)], True


def _rows_of_parts(content: Any, count: int | None) -> list[Any]:
    """Lists the content of each of `count` turns, of which a batch has made columns.

    A content in parts has become a list of parts, dicts whose values are columns.
    """
    if not (isinstance(content, (list, tuple)) and content and all(map(is_row, content))):
        return as_list(content)
    parts = [_split(part) for part in content]
    return [[part[i] for part in parts] for i in range(count)]


def read_turns(value: Any) -> list[dict[str, str]]:
    """Lists the turns of one conversation, dicts with roles and contents of str.

    Args:
        value: list of turns, or a dict with a list of roles and a list of contents.
    """
    turns = _split(value) if is_row(value) else value
    return [{key: _decoded(part) for key, part in turn.items()} for turn in turns]


def _split(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Turns a dict of columns into a list of dicts."""
    count = len(as_list(columns["role"])) if "role" in columns else None
    values = zip(*(_rows_of_parts(column, count) for column in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in values]


def _decoded(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
