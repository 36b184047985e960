"""Bounds logits."""

from keras_rgemma.backend import backend_module


def soft_cap(logits, cap):
    """Computes `cap * tanh(logits / cap)` in the dtype of the logits.

    Args:
        logits: float array, which nobody uses afterwards: its memory may become the result's.
        cap: float.
    """
    return backend_module(__name__).soft_cap(logits, cap)
