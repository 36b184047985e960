"""The same inside TensorFlow graphs, such as `tf.data` pipelines."""

import keras
import tensorflow as tf


def python_rows(function, inputs, length):
    """The arrays of a Python function of strings, as tensors.

    Args:
        function: of `inputs` with NumPy arrays of bytes in place of the tensors; it returns
            `(x, y, sample_weight)` of int32 arrays [N, length], x a dict of `token_ids` and
            `padding_mask`.
        inputs: structure of string tensors.
        length: int.

    Returns:
        The same of int32 tensors [None, length].
    """

    def run(*arrays):
        x, y, sample_weight = function(keras.tree.pack_sequence_as(inputs, arrays))
        return x["token_ids"], x["padding_mask"], y, sample_weight

    found = tf.numpy_function(run, keras.tree.flatten(inputs), [tf.int32] * 4)
    for tensor in found:
        tensor.set_shape((None, length))
    token_ids, padding_mask, y, sample_weight = found
    return {"token_ids": token_ids, "padding_mask": padding_mask}, y, sample_weight
