"""What states need of TensorFlow alone."""

import functools

import tensorflow as tf


def samples(values, strides):
    """Reads every so many numbers of each variable.

    Args:
        values: list of `tf.Variable`.
        strides: list of tuples of int, one stride an axis.

    Returns:
        List of NumPy arrays [N].
    """
    # As a function the raw operation costs a tenth of Python's slicing.
    flat = [
        tf.reshape(tf.raw_ops.StridedSlice(input=value, **_slices(tuple(value.shape), steps)), [-1])
        for value, steps in zip(values, strides, strict=True)
    ]
    found = [None] * len(flat)
    for dtype in {x.dtype for x in flat}:  # one copy from the device each
        places = [i for i, x in enumerate(flat) if x.dtype == dtype]
        joined = tf.concat([flat[i] for i in places], axis=0).numpy()
        end = 0
        for i in places:
            start, end = end, end + flat[i].shape[0]
            found[i] = joined[start:end]
    return found


@functools.cache
def _slices(shape, steps):
    """The arguments of a strided slice over all of a shape."""
    return {
        "begin": tf.zeros(len(shape), "int32"),
        "end": tf.constant(shape, "int32"),
        "strides": tf.constant(steps, "int32"),
    }
