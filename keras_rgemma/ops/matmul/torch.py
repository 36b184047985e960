"""Multiplies rows by a matrix on PyTorch."""

from keras_rgemma.ops.matmul.plain import multiply


def default_implementation():
    return "keras"


IMPLEMENTATIONS = {"keras": multiply}
