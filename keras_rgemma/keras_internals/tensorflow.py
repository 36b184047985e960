"""Starts TensorFlow, and steps out of its graphs."""

import functools

import tensorflow as tf

from keras_rgemma.startup import without_startup_lines


@functools.cache
def start():
    """Starts the runtime of TensorFlow, as its first operation would, without a word about it."""
    with without_startup_lines():
        tf.config.list_logical_devices()


def outside_of_graphs():
    """Returns a context in which objects outlive the graph that is being traced."""
    return tf.init_scope()
