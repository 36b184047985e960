"""Bounds logits."""

from keras_rgemma.backend import resolve
from keras_rgemma.types import Tensor


def soft_cap(logits: Tensor, cap: float, *, implementation: str = "auto") -> Tensor:
    """Computes `cap * tanh(logits / cap)` in the dtype of the logits.

    Args:
        logits: float array that nobody uses afterwards: its memory may become the result's.
        cap: float.
        implementation: "auto", or the name of one of this backend's implementations.
    """
    return resolve("soft_cap", implementation)(logits, cap)
