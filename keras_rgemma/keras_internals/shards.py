"""Lets Keras write variables into files, and read them from files, shard by shard."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np


class _Written(keras.Variable):
    """Variable whose value is made for the file that asks, and not kept by JAX."""

    @property
    def value(self) -> Any:
        return vars(self)["_on_host"](self._value)


class _Read(keras.Variable):
    """Variable that takes an array of a file to its shards, each device its part."""

    def assign(self, value: Any) -> Any:
        if not isinstance(value, np.ndarray) or tuple(value.shape) != tuple(self.shape):
            return super().assign(value)
        self._value = vars(self)["_on_devices"](value, self._dtype, self._layout.backend_layout)
        return self._value


@contextlib.contextmanager
def written_with(
    variables: Iterable[keras.Variable], on_host: Callable[[Any], Any]
) -> Iterator[None]:
    """Lets the values of variables that lie on several devices pass through a function.

    Args:
        variables: list of `keras.Variable`, of JAX.
        on_host: function of a `jax.Array` that returns what `value` shall be.
    """
    with _of_class(variables, _Written, "_on_host", on_host):
        yield


@contextlib.contextmanager
def read_with(
    variables: Iterable[keras.Variable], on_devices: Callable[[np.ndarray, str, Any], Any]
) -> Iterator[None]:
    """Lets a function lay the NumPy arrays out that are assigned to variables on several devices.

    Args:
        variables: list of `keras.Variable`, of JAX.
        on_devices: function of an array, a dtype and a sharding that returns a `jax.Array`.
    """
    with _of_class(variables, _Read, "_on_devices", on_devices):
        yield


@contextlib.contextmanager
def _of_class(
    variables: Iterable[keras.Variable],
    cls: type[keras.Variable],
    name: str,
    function: Callable[..., Any],
) -> Iterator[None]:
    """Gives variables that have a layout another class and an attribute in a `with` block."""
    is_plain = not keras.config.is_nnx_enabled()
    changed = [x for x in variables if is_plain and type(x) is keras.Variable and x._layout]
    changed = list({id(x): x for x in changed}.values())
    for variable in changed:
        vars(variable)[name] = function
        variable.__class__ = cls
    try:
        yield
    finally:
        for variable in changed:
            variable.__class__ = keras.Variable
            del vars(variable)[name]
