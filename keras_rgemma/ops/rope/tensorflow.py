"""Computes RoPE on TensorFlow."""

from keras_rgemma.ops.rope.split import constant, rotate

__all__ = ["IMPLEMENTATIONS", "constant", "default_implementation"]


def default_implementation():
    return "split"


IMPLEMENTATIONS = {"split": rotate}
