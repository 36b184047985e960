"""Creates Keras variables without values, and initializes them later."""

import contextlib

import keras
from keras.src.backend.common import global_state

from keras_rgemma.keras_internals.parameters import normal_tensors

_WAITING = "uninitialized_variables"


@contextlib.contextmanager
def uninitialized_variables():
    """Creates variables without values inside a `with` block; `initialize` gives each its own."""
    others = list(global_state.get_global_attribute(_WAITING) or [])
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    finally:
        # Keras would initialise them as soon as any other model is made.
        global_state.set_global_attribute(_WAITING, others)


def has_value(variable):
    """Returns whether a variable has its first value."""
    return variable._value is not None


def initialize(variable, initializer=None):
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


def initialize_from_numpy(variable, array):
    """Sets the first value of a variable to a NumPy array, each shard directly on its device.

    Args:
        variable: `keras.Variable` that was created in `uninitialized_variables`.
        array: NumPy array of its shape and dtype.
    """
    with normal_tensors():
        variable._initialize(array)
    variable._initializer = None
