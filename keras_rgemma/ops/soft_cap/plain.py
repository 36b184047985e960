"""Bounds logits in a new array, for any backend."""

import numpy as np
from keras import ops

from keras_rgemma.backend import tensor_of
from keras_rgemma.types import Tensor


def soft_cap(logits: Tensor, cap: float) -> Tensor:
    """Computes what the package's function does."""
    # Keras would make a tensor of floatx, whose dtype JAX may promote beyond that of the logits.
    cap = ops.cast(tensor_of(np.float32(cap)), logits.dtype)
    return ops.tanh(logits / cap) * cap
