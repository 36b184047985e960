"""The Keras backend, and which implementation of an operation runs on it.

An operation is a folder of `keras_rgemma/ops/` with one module a backend. Each of these modules has
`IMPLEMENTATIONS`, a dict of functions by name, and `default_implementation()`, which returns the
name of the best one for the device.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

import keras
import numpy as np

from keras_rgemma.choices import BACKENDS
from keras_rgemma.types import Implementation, Tensor

_P = ParamSpec("_P")
_R = TypeVar("_R")

OPERATIONS = (
    "cross_entropy",
    "int8_matmul",
    "linear_recurrence",
    "matmul",
    "rope",
    "soft_cap",
    "window_attention",
)

_of_process = {}  # names of implementations by operation, chosen by `set_implementation`
# The same as sorted pairs.
_of_context: contextvars.ContextVar[tuple[tuple[str, str], ...]] = contextvars.ContextVar(
    "implementation", default=()
)
_keys = {}
_modules = {}


def check_backend() -> str:
    """Returns the name of Keras' backend.

    Raises:
        ValueError: it is not one that this package runs on.
    """
    backend = keras.config.backend()
    if backend not in BACKENDS:
        raise ValueError(
            f"keras-rgemma runs on the Keras backends {BACKENDS}. Received: {backend!r}. Set "
            "KERAS_BACKEND to one of them before the first import of keras."
        )
    return backend


def start_backend() -> None:
    """Checks the backend as `check_backend` does, and starts it without a word about it."""
    if check_backend() == "tensorflow":
        backend_module("keras_rgemma.keras_internals").start()


def backend_module(package: str) -> ModuleType:
    """Imports the module of a package that is named after the backend.

    Args:
        package: str, the dotted name of the package.
    """
    name = f"{package}.{check_backend()}"
    # PyTorch, where it compiles a function, can read a dict, and no cache of a function.
    if name not in _modules:
        _modules[name] = _imported(name)
    return _modules[name]


def tensor_of(array: np.ndarray) -> Tensor:
    """Converts a NumPy array to a tensor of the same dtype.

    Without a dtype Keras converts to float32 on JAX, integers too, if floatx is bfloat16.
    """
    return keras.ops.convert_to_tensor(array, dtype=array.dtype.name)


# TensorFlow, where it traces a function, cannot read the code that imports.
_imported = functools.cache(importlib.import_module)


def resolve(operation: str, implementation: Implementation = "auto") -> Callable[..., Any]:
    """Returns the function that implements an operation on the backend.

    Args:
        operation: str, one of `OPERATIONS`.
        implementation: the argument of the operation, a str. "auto" takes the choice of the
            innermost `with keras_rgemma.implementation(...)`, or that of
            `keras_rgemma.set_implementation`, or the default of the backend and device, in this
            order. A function, which this one returned before, is returned as it is.

    Raises:
        ValueError: the operation, or the implementation on this backend, does not exist.
    """
    if callable(implementation):
        return implementation
    if implementation == "auto":
        implementation = _choices().get(operation, "auto")
    module = _check(operation, implementation)
    if implementation == "auto":
        implementation = module.default_implementation()
    return module.IMPLEMENTATIONS[implementation]


def set_implementation(**implementations: str) -> None:
    """Chooses the implementations of operations for the whole process, until the next choice.

    Args:
        **implementations: the name of an implementation by operation (`linear_recurrence="loop"`);
            "auto" goes back to the default. Other operations keep their choices.

    Raises:
        ValueError: an operation, or an implementation on this backend, does not exist. No choice
            is changed then, and none is ever replaced by another without notice.

    Example:
    ```python
    keras_rgemma.set_implementation(linear_recurrence="auto")
    ```
    """
    for operation, implementation in implementations.items():
        _check(operation, implementation)
    _of_process.update(implementations)


@contextlib.contextmanager
def implementation(**implementations: str) -> Iterator[None]:
    """Chooses the implementations of operations inside of a `with` block, in its thread alone.

    Blocks may be nested: an inner one changes the operations that it names. Programs that were
    compiled under other choices are compiled again.

    Args:
        **implementations: as of `set_implementation`; "auto" is the default of the backend and
            device here, too, whatever the choices outside of the block.

    Raises:
        ValueError: an operation, or an implementation on this backend, does not exist.

    Example:
    ```python
    with keras_rgemma.implementation(linear_recurrence="auto"):
        text = lm.generate("What is a river?")
    ```
    """
    for operation, name in implementations.items():
        _check(operation, name)
    outer = dict(_of_context.get())
    token = _of_context.set(tuple(sorted({**outer, **implementations}.items())))
    try:
        yield
    finally:
        _of_context.reset(token)


def implementation_key() -> tuple[tuple[str, str], ...]:
    """Describes the choices in force: a tuple, one object for the same choices.

    A program that was traced under one key must not run under another. Keys may be compared by
    identity.
    """
    key = tuple(sorted(pair for pair in _choices().items() if pair[1] != "auto"))
    return _keys.setdefault(key, key)


def keep_choices(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Returns a function that runs under the choices in force now, whatever they are later.

    PyTorch computes activations again in a thread of its own, which knows no `with` block.
    """
    choices = tuple(sorted(_choices().items()))

    @functools.wraps(function)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        token = _of_context.set(choices)
        try:
            return function(*args, **kwargs)
        finally:
            _of_context.reset(token)

    return run


def _choices() -> dict[str, str]:
    return {**_of_process, **dict(_of_context.get())}


def _check(operation: str, implementation: str) -> ModuleType:
    """Returns the module of an operation on this backend, if it has an implementation."""
    if operation not in OPERATIONS:
        raise ValueError(f"The operations are {OPERATIONS}. Received: {operation!r}.")
    module = backend_module(f"keras_rgemma.ops.{operation}")
    if implementation != "auto" and implementation not in module.IMPLEMENTATIONS:
        raise ValueError(
            f"The implementation of {operation!r} must be 'auto' or one of "
            f"{tuple(module.IMPLEMENTATIONS)} on the {check_backend()} backend. Received: "
            f"{implementation!r}."
        )
    return module
