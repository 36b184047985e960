"""Bounds numbers by a Python scalar in their own dtype.

`ops.maximum(integers, 0)` returns float32 on JAX if Keras' floatx is bfloat16.
"""

from keras import ops

from keras_rgemma.types import Tensor


def at_least(x: Tensor, bound: float) -> Tensor:
    """Computes the maximum of an array and a Python scalar, in the dtype of the array."""
    return ops.maximum(x, ops.cast(bound, x.dtype))


def at_most(x: Tensor, bound: float) -> Tensor:
    """Computes the minimum of an array and a Python scalar, in the dtype of the array."""
    return ops.minimum(x, ops.cast(bound, x.dtype))
