"""Computes RoPE on JAX."""

from keras_rgemma.ops.rope.split import rotate


def default_implementation():
    return "split"


IMPLEMENTATIONS = {"split": rotate}
