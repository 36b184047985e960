"""Bounds numbers by a Python scalar in their own dtype.

`ops.maximum(integers, 0)` returns float32 on JAX if Keras' floatx is bfloat16.
"""

from keras import ops


def at_least(x, bound):
    """Computes the maximum of an array and a Python scalar, in the dtype of the array."""
    return ops.maximum(x, ops.cast(bound, x.dtype))


def at_most(x, bound):
    """Computes the minimum of an array and a Python scalar, in the dtype of the array."""
    return ops.minimum(x, ops.cast(bound, x.dtype))
