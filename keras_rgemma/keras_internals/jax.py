"""Inspects compiled functions of JAX, and reads many variables at once."""

import keras


def program_count(jitted):
    """Counts the compiled programs of a function of `jax.jit`, one a shape."""
    return jitted._cache_size()


def values_of(variables):
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
