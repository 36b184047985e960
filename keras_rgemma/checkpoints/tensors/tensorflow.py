"""Gives variables their arrays on TensorFlow."""

import keras
import numpy as np
import tensorflow as tf

from keras_rgemma.checkpoints.tensors.arrays import aligned_in_rows, bits, in_rows
from keras_rgemma.keras_internals import variables as internals


def give(variable: keras.Variable, array: np.ndarray) -> None:
    """Gives a variable its first value: see `keras_rgemma.checkpoints.tensors`."""
    internals.initialize(variable, lambda shape, dtype: _tensor(array, dtype))


def _tensor(array: np.ndarray, dtype: str) -> tf.Tensor:
    if array.dtype != np.dtype(dtype) or not array.size:
        return keras.ops.convert_to_tensor(in_rows(array), dtype=dtype)
    array = aligned_in_rows(array)
    # Only by DLPack, which has no bfloat16 of NumPy's, does TensorFlow take an array uncopied.
    capsule = array.view(bits(array.dtype)).__dlpack__()
    return tf.bitcast(tf.experimental.dlpack.from_dlpack(capsule), dtype)
