"""Reads texts and columns in every form that people keep them in, of whichever library.

Libraries are recognised by the methods of their objects and never imported.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_rgemma.shapes import check_text


def read_texts(texts: Any, name: str = "prompt", column: str = "text") -> list[str]:
    """Reads one or several texts in any form.

    Args:
        texts: a str or bytes; a list, tuple, generator or other iterable of str; an array of
            objects, str or bytes; a tensor of strings; a column of pandas, Polars, Arrow or
            `datasets`; a table or dict with a column `text`; rows `{"text": str}`; or a `tf.data`
            dataset of texts or of batches of texts.
        name: str, the name of one text in errors.
        column: str, the column or key of texts in tables, dicts and rows.

    Returns:
        list of str.

    Raises:
        TypeError: an element is no text, such as None or NaN.
        ValueError: a text is no valid Unicode, or there is no such column or key.
    """
    if is_text(texts):
        return [read_text(texts, f"A {name}")]
    if column_names(texts) is not None:
        texts = _text_column(texts, column)
    elif hasattr(texts, "as_numpy_iterator"):
        texts = [text for batch in texts.as_numpy_iterator() for text in _batch(batch, column)]
    values = as_list(texts)
    values = [_text_column(value, column) if is_row(value) else value for value in values]
    return [read_text(value, f"{name.capitalize()} {i}") for i, value in enumerate(values)]


def _batch(batch: Any, column: str) -> list[Any]:
    batch = _text_column(batch, column) if is_row(batch) else batch
    return [batch] if is_text(batch) else as_list(batch)


def _text_column(table: Any, column: str) -> Any:
    if column not in column_names(table):
        raise ValueError(
            f"Texts in a table, a dict or a row stand under {column!r}. Received one with "
            f"{describe_names(table)}: pass the column with the texts alone."
        )
    return table[column]


def read_text(value: Any, what: str) -> str:
    """Converts a text to a str; see `keras_rgemma.shapes.check_text`.

    Args:
        value: str, bytes, or a tensor of one string.
        what: str, the name of the value in errors.

    Raises:
        TypeError: the value is no text.
        ValueError: the value is no valid Unicode.
    """
    if is_missing(value):
        raise TypeError(
            f"{what} must be a str. Received: {value!r}, a missing value. Leave such values out, "
            "in pandas with `dropna()`, or write '' where an empty text is meant."
        )
    is_tensor = not isinstance(value, (str, bytes)) and is_text(value)
    return check_text(as_list(value)[0] if is_tensor else value, what)


def is_text(value: Any) -> bool:
    """Returns whether a value is a str, bytes, or a tensor of one string."""
    if isinstance(value, (str, bytes)):
        return True
    is_scalar = getattr(value, "shape", None) == () and hasattr(value, "dtype")
    return is_scalar and isinstance(as_list(value)[0], (str, bytes))


def is_missing(value: Any) -> bool:
    """Returns whether a value stands for a missing one: None, NaN or the NA of pandas."""
    is_nan = isinstance(value, float) and value != value
    return value is None or is_nan or type(value).__name__ in ("NAType", "NaTType")


def is_row(value: Any) -> bool:
    """Returns whether a value is a dict, or another mapping of names to values."""
    return isinstance(value, Mapping)


def is_iterable(value: object) -> bool:
    """Returns whether a value holds several, in any form that `as_list` reads."""
    return any(hasattr(value, name) for name in ("__iter__", "__array__", "to_pylist"))


def column_names(table: Any) -> list[Any] | None:
    """Lists the names of the columns of a table or dict; returns None for anything else."""
    if is_row(table):
        return list(table)
    if hasattr(table, "iloc") or hasattr(table, "get_column"):  # pandas, Polars
        names = getattr(table, "columns", None)  # a pandas column has none
    else:
        names = getattr(table, "column_names", None)  # Arrow, datasets
    return None if names is None else list(names)


def describe_names(table: Any) -> str:
    """Describes the columns of a table or the keys of a dict for an error."""
    kind = "the keys" if is_row(table) else "the columns"
    return f"{kind} {sorted(map(str, column_names(table)))}"


def as_list(column: Any) -> list[Any]:
    """Lists the values of a column, an array, a tensor or an iterable; a scalar is one value."""
    if isinstance(column, (str, bytes)):
        return [column]
    for method in ("to_pylist", "to_list", "tolist"):  # Arrow; Polars, ragged tensors; arrays
        if hasattr(column, method):
            values = getattr(column, method)()
            return values if isinstance(values, list) else [values]
    if hasattr(column, "__array__"):
        return as_list(np.asarray(column))
    try:
        return list(column)
    except TypeError as error:
        raise TypeError(
            "Texts are a str, an iterable or array of str, or a column of a table. Received: "
            f"{column!r} of type {type(column).__name__}."
        ) from error
