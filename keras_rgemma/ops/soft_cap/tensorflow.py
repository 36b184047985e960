"""Bounds logits on TensorFlow, which fuses the operations where it compiles."""

from keras_rgemma.ops.soft_cap.plain import soft_cap


def default_implementation():
    return "keras"


IMPLEMENTATIONS = {"keras": soft_cap}
