"""Gives linear layers their matrices as [J, I] where a program has them so, beside [I, J]."""

import contextlib
import contextvars
from collections.abc import Iterator, Mapping

import keras

from keras_rgemma.types import Tensor

# The ids of variables and their arrays.
_arrays: contextvars.ContextVar[Mapping[int, Tensor] | None] = contextvars.ContextVar(
    "turned", default=None
)


@contextlib.contextmanager
def turned_arrays(arrays: Mapping[int, Tensor]) -> Iterator[None]:
    """Gives layers arrays [J, I] of their variables [I, J] inside of a `with` block.

    Args:
        arrays: dict of the id of a variable to its array.
    """
    token = _arrays.set(arrays)
    try:
        yield
    finally:
        _arrays.reset(token)


def turned_array(variable: keras.Variable | None) -> Tensor | None:
    """Returns the array [J, I] of a variable [I, J] in a program that has it, or None."""
    arrays = _arrays.get()
    return None if arrays is None else arrays.get(id(variable))
