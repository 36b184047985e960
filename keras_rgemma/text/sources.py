"""Reads the elements of sources: datasets, loaders and generators, one pass after the other.

Libraries are recognised by the classes of their objects and never imported.
"""

import collections.abc
import copy
import sys
from collections.abc import Callable, Iterator
from typing import Any

from keras_rgemma.text.forms import column_names, is_row, is_text


def is_source(data: Any) -> bool:
    """Returns whether data are read element by element, and not in memory as a whole."""
    if is_text(data) or is_row(data) or isinstance(data, collections.abc.Sequence):
        return False
    if hasattr(data, "element_spec") or _is_a(data, "PyDataset", "keras"):
        return True
    if any(_is_a(data, name, "datasets") for name in ("Dataset", "IterableDataset")):
        return True  # with columns, but not all of them in memory
    if column_names(data) is not None or _is_column(data):
        return False
    return hasattr(data, "__iter__") or hasattr(data, "__getitem__")


def elements(data: Any) -> Iterator[Any]:
    """Iterates over the elements of a source, from the first one where it can begin again."""
    if hasattr(data, "as_numpy_iterator"):
        return data.as_numpy_iterator()
    if _is_a(data, "PyDataset", "keras"):
        count = data.num_batches
        return (data[i] for i in (range(count) if count is not None else _counted()))
    if _is_a(data, "DataLoader", "torch.utils.data"):
        return iter(_with_lists(data))
    if not hasattr(data, "__iter__"):
        return (data[i] for i in range(len(data)))
    return iter(data)


def begins_again(data: Any) -> bool:
    """Returns whether a source gives all its elements in each pass."""
    return not isinstance(data, collections.abc.Iterator)


def count(data: Any) -> float | None:
    """Counts the elements of a source.

    Returns:
        int; None if the number is not known; or `math.inf` for a source that is known to have no
        end.
    """
    if hasattr(data, "cardinality"):
        number = int(data.cardinality())  # -1: no end; -2: not known
        return None if number == -2 else float("inf") if number == -1 else number
    if _is_a(data, "PyDataset", "keras"):
        return float("inf") if data.num_batches is None else data.num_batches
    try:
        number = len(data)
    except (TypeError, NotImplementedError):
        return None
    return float("inf") if number >= sys.maxsize else number


def is_prepared(element: Any) -> bool:
    """Returns whether an element or an argument is what a preprocessor returns."""
    if isinstance(element, (tuple, list)) and 1 <= len(element) <= 3:
        element = element[0]
    return is_row(element) and "token_ids" in element


def is_spec_of_rows(data: Any) -> bool:
    """Returns whether a `tf.data` dataset has prepared elements, with labels."""
    spec = getattr(data, "element_spec", None)
    return isinstance(spec, tuple) and len(spec) > 1 and is_prepared(spec)


def _is_a(data: Any, name: str, package: str) -> bool:
    """Returns whether a class of that name and package is among the bases of an object."""
    return any(
        base.__name__ == name and (base.__module__ + ".").startswith(package + ".")
        for base in type(data).__mro__
    )


def _is_column(data: Any) -> bool:
    return any(hasattr(data, name) for name in ("__array__", "to_pylist", "to_list", "tolist"))


def _counted() -> Iterator[int]:
    number = 0
    while True:
        yield number
        number += 1


def _with_lists(loader: Any) -> Any:
    """Copies a loader of torch whose batches of examples are lists.

    Its own way of making batches turns pairs, turns and ids into columns, or fails where they have
    several lengths. A loader with a `collate_fn` of its user's stays as it is.
    """
    if getattr(loader.collate_fn, "__name__", "") != "default_collate":
        return loader
    copied = copy.copy(loader)
    copied.collate_fn = _ListsOfExamples(loader.collate_fn)
    return copied


class _ListsOfExamples:
    """Makes a batch of prepared rows by a function, and of examples by listing them."""

    def __init__(self, collate: Callable[..., Any]) -> None:
        self._collate = collate

    def __call__(self, items: list[Any]) -> Any:
        if is_prepared(items[0]):
            return self._collate(items)
        is_alone = all(isinstance(item, tuple) and len(item) == 1 for item in items)
        return [item[0] for item in items] if is_alone else list(items)
