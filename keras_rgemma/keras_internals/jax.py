"""Inspects compiled functions of JAX, reads many variables at once, turns arrays, makes meshes."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import keras
import numpy as np


def program_count(jitted: Callable[..., Any]) -> int:
    """Counts the compiled programs of a function of `jax.jit`, one a shape."""
    return jitted._cache_size()


def values_of(variables: Sequence[keras.Variable]) -> list[jax.Array]:
    """Lists the arrays of variables, as their attribute `value` gives them outside of any scope.

    The attribute looks for scopes each time, for as long as 3 microseconds: with hundreds of
    variables that shows in each token of `stream`.
    """
    if keras.config.is_nnx_enabled():
        return [variable.value for variable in variables]
    values = [variable._value for variable in variables]
    if any(value is None for value in values):
        return [variable.value for variable in variables]
    return values


if TYPE_CHECKING:  # to a type checker that reads annotations alone, Keras' class is unknown
    _Variable = object
else:
    _Variable = keras.Variable


class TurnedVariable(_Variable):
    """Variable [I, J] whose array lies in memory as [J, I]; see `turn`.

    Its value is made from the array each time that somebody asks for it.
    """

    @property
    def _value(self) -> jax.Array | None:
        return None if self._array is None else jnp.transpose(self._array)

    @_value.setter
    def _value(self, value: jax.Array | None) -> None:
        self._array = None if value is None else jnp.transpose(value)

    def turn_back(self) -> None:
        """Stores the array as Keras does."""
        vars(self)["_value"] = self._value
        self.__class__ = keras.Variable
        vars(self).pop("_array", None)


def turn(variable: keras.Variable) -> None:
    """Stores the array of a matrix with its axes exchanged; everybody finds the matrix as it was.

    A variable without a value stays, and one that is laid out over devices or of another class.
    """
    if not _can_turn(variable):
        return
    value = variable._value
    if value is not None:
        _store_turned(variable, jnp.transpose(value))


def initialize_turned(variable: keras.Variable, array: np.ndarray) -> bool:
    """Sets the first value of a variable [I, J] to an array as it lies, [J, I].

    Args:
        variable: `keras.Variable` without a value, see `variables.uninitialized_variables`.
        array: NumPy array of its dtype.

    Returns:
        False for a variable that `turn` leaves as it is; it has no value then.
    """
    if not _can_turn(variable):
        return False
    _store_turned(variable, device_array(array))
    variable._initializer = None
    return True


def device_array(array: np.ndarray) -> jax.Array:
    """Makes an array of JAX from a NumPy array, which is no longer needed when this returns.

    JAX copies it once, or on a CPU not at all if it is aligned.
    """
    return jax.device_put(array).block_until_ready()


def _can_turn(variable: keras.Variable) -> bool:
    is_plain = type(variable) is keras.Variable and variable._layout is None
    return is_plain and not keras.config.is_nnx_enabled()


def _store_turned(variable: keras.Variable, array: jax.Array) -> None:
    vars(variable)["_array"] = array
    variable.__class__ = TurnedVariable
    vars(variable).pop("_value", None)  # another thread may have turned it at the same time


def arrays_of(variables: Sequence[keras.Variable]) -> tuple[list[jax.Array], tuple[bool, ...]]:
    """Lists the arrays of variables as they are stored, and for each whether it is turned."""
    turned = tuple(type(variable) is TurnedVariable for variable in variables)
    straight = iter(values_of([x for x, t in zip(variables, turned, strict=True) if not t]))
    pairs = zip(variables, turned, strict=True)
    return [x._array if is_turned else next(straight) for x, is_turned in pairs], turned


def mesh_of(backend_mesh: jax.sharding.Mesh) -> keras.distribution.DeviceMesh:
    """Makes a mesh of devices that this machine need not have; Keras looks for its own.

    Args:
        backend_mesh: `jax.sharding.Mesh`, as of a topology.

    Returns:
        `keras.distribution.DeviceMesh`.
    """
    names = [f"{device.platform}:{device.id}" for device in backend_mesh.devices.flat]
    shape, axes = tuple(backend_mesh.devices.shape), tuple(backend_mesh.axis_names)
    mesh = keras.distribution.DeviceMesh(shape, axes, names)
    mesh._backend_mesh = backend_mesh
    return mesh
