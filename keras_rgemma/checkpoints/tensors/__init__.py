"""Gives variables the arrays of a checkpoint, with as few copies as the backend allows."""

import keras
import numpy as np

from keras_rgemma.backend import backend_module


def give(variable: keras.Variable, array: np.ndarray) -> None:
    """Gives a variable its first value, in its dtype and, with a distribution, on its shards.

    Args:
        variable: `keras.Variable` without a value.
        array: NumPy array of its shape, which nobody writes to afterwards. It may lie in memory in
            any order.
    """
    backend_module(__name__).give(variable, array)
