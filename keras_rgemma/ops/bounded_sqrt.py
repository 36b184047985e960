"""Defines a square root with a bounded gradient."""

from keras import ops

from keras_rgemma.ops.bounds import at_least
from keras_rgemma.types import Tensor

MAX_GRADIENT = 1000.0


def bounded_sqrt(x: Tensor) -> Tensor:
    """Computes `sqrt(x)`, with the derivative at `max(x, 1 / (4 * 1000^2))`, so at most 1000.

    The RG-LRU computes the root of `1 - a^2`; as a goes to 1 the true derivative goes to infinity
    and, in low precision, to NaN. DeepMind trained with this bound.

    Args:
        x: float, any shape, not negative.
    """
    slope = 0.5 * ops.rsqrt(at_least(x, 1.0 / (4.0 * MAX_GRADIENT**2)))
    # The second term is zero and carries the gradient.
    return ops.stop_gradient(ops.sqrt(x)) + (x - ops.stop_gradient(x)) * ops.stop_gradient(slope)
