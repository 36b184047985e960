"""Copies arrays of several devices to the host, and into and out of files, shard by shard."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import inspect
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Concatenate, ParamSpec, TypeVar

import keras
import numpy as np

from keras_rgemma.keras_internals.shards import read_with, written_with
from keras_rgemma.types import StrPath, Tensor

_M = TypeVar("_M")
_P = ParamSpec("_P")
_R = TypeVar("_R")

_WRITES = contextvars.ContextVar("writes", default=False)  # whether a `destination` is open

if keras.config.backend() == "jax":
    from keras_rgemma.sharding import jax as devices

    def numpy_of(x: Tensor) -> np.ndarray:
        """Copies a tensor to the host, from all processes if it lies in several; a NumPy array."""
        if isinstance(x, devices.Array) and not x.is_fully_addressable:
            return devices.on_host(x)
        return keras.ops.convert_to_numpy(x)

    def reading(variables: Iterable[keras.Variable]) -> contextlib.AbstractContextManager[None]:
        """Returns a context in which variables take arrays of files, each device its part.

        Args:
            variables: list of `keras.Variable`.
        """
        return read_with(variables, devices.on_devices)

    def writing(variables: Iterable[keras.Variable]) -> contextlib.AbstractContextManager[None]:
        """Returns a context in which variables are copied to the host one by one.

        With several processes all of them must read the same variables in the same order.

        Args:
            variables: list of `keras.Variable`.
        """
        return written_with(variables, devices.on_host)

    def alone_on_host() -> contextlib.AbstractContextManager[None]:
        """Returns a context that computes on the host, without a distribution, if there is one."""
        is_distributed = keras.distribution.distribution() is not None
        return devices.alone_on_host() if is_distributed else contextlib.nullcontext()

    @contextlib.contextmanager
    def destination(path: StrPath) -> Iterator[StrPath]:
        """Yields a path to write to: `path` in the first process, and one that is thrown away in
        the others, which wait until all have written.
        """
        if devices.process_count() == 1 or _WRITES.get():
            yield path  # a part of what is written has no place of its own
            return
        token = _WRITES.set(True)
        try:
            with tempfile.TemporaryDirectory() as folder:
                own = pathlib.Path(folder) / pathlib.Path(path).name
                yield own if devices.process_index() else path
        finally:
            _WRITES.reset(token)
        devices.wait_for_all("keras_rgemma has written")

else:
    numpy_of = keras.ops.convert_to_numpy

    def reading(variables: Iterable[keras.Variable]) -> contextlib.AbstractContextManager[None]:
        """Does nothing: `keras.distribution` is JAX's."""
        return contextlib.nullcontext()

    def writing(variables: Iterable[keras.Variable]) -> contextlib.AbstractContextManager[None]:
        """Does nothing: `keras.distribution` is JAX's."""
        return contextlib.nullcontext()

    def alone_on_host() -> contextlib.AbstractContextManager[None]:
        """Does nothing: `keras.distribution` is JAX's."""
        return contextlib.nullcontext()

    def destination(path: StrPath) -> contextlib.AbstractContextManager[StrPath]:
        """Returns a context with the path as it is."""
        return contextlib.nullcontext(path)


def _variables_of(model: Any) -> list[keras.Variable]:
    """Lists the variables of a model and of its optimizer, if it has one."""
    return [*model.variables, *getattr(getattr(model, "optimizer", None), "variables", ())]


def writes(method: Callable[Concatenate[_M, _P], _R]) -> Callable[Concatenate[_M, _P], _R]:
    """Decorates a method of a model that writes a file or folder, its first argument.

    Variables that lie on several devices are on the host one at a time. With several processes all
    of them must call the method; the first one writes.
    """
    name = list(inspect.signature(method).parameters)[1]

    @functools.wraps(method)
    def write(self: _M, *args: Any, **kwargs: Any) -> _R:
        path, *args = args if args else (kwargs.pop(name),)
        with writing(_variables_of(self)), destination(path) as own:
            return method(self, own, *args, **kwargs)

    return write


def reads(method: Callable[Concatenate[_M, _P], _R]) -> Callable[Concatenate[_M, _P], _R]:
    """Decorates a method of a model that reads weights: each device gets its part of an array."""

    @functools.wraps(method)
    def read(self: _M, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        with reading(_variables_of(self)):
            return method(self, *args, **kwargs)

    return read
