"""Creates Keras variables without values, and initializes them later."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
from keras.src.backend.common import global_state

from keras_rgemma.keras_internals.parameters import normal_tensors
from keras_rgemma.types import Shape

_WAITING = "uninitialized_variables"


@contextlib.contextmanager
def uninitialized_variables() -> Iterator[None]:
    """Creates variables without values inside a `with` block; `initialize` gives each its own."""
    others = list(global_state.get_global_attribute(_WAITING) or [])
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    finally:
        # Keras would initialise them as soon as any other model is made.
        global_state.set_global_attribute(_WAITING, others)


def has_value(variable: keras.Variable) -> bool:
    """Returns whether a variable has its first value."""
    return variable._value is not None


def initialize(variable: keras.Variable, initializer: Callable[..., Any] | None = None) -> None:
    """Sets the first value of a variable.

    Args:
        variable: `keras.Variable` that was created in `uninitialized_variables`.
        initializer: function of a shape and a dtype that returns the value; None for the
            variable's own.
    """
    if initializer is not None:
        variable._initializer = initializer
    with normal_tensors():
        variable._deferred_initialize()


def initialize_with(variable: keras.Variable, value: Callable[[Shape, str, Any], Any]) -> None:
    """Sets the first value of a variable to an array that lies where the variable shall lie.

    Args:
        variable: `keras.Variable` that was created in `uninitialized_variables`.
        value: function of a shape, a dtype and a sharding of JAX that returns the array.
    """
    variable._initialize_layout()
    sharding = variable._layout.backend_layout
    variable._value = value(variable.shape, variable.dtype, sharding)
    variable._initializer = None


def replicate_unplaced(variables: Iterable[keras.Variable]) -> None:
    """Gives variables without a layout a copy on each device of the distribution in force.

    Such are those that were made before the distribution was set, as by an optimizer. Keras 3.15
    would compute with them on one device and with the others on all, which JAX refuses.
    """
    mesh = keras.distribution.distribution().device_mesh
    for variable in variables:
        if variable._layout is None:
            axes = [None] * len(variable.shape)
            set_layout(variable, keras.distribution.TensorLayout(axes, mesh))


def set_layout(variable: keras.Variable, layout: keras.distribution.TensorLayout) -> None:
    """Lays a variable out over the devices of a mesh, now or when it gets its first value.

    Args:
        variable: `keras.Variable`, on JAX.
        layout: `keras.distribution.TensorLayout`.
    """
    variable._layout = layout
    if has_value(variable):
        variable._direct_assign(variable._value)
