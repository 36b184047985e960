"""Bounds logits in NumPy: what each backend is compared with."""

import numpy as np


def soft_cap(logits: np.ndarray, cap: float) -> np.ndarray:
    """Computes the bounded logits in float64."""
    return cap * np.tanh(np.asarray(logits, "float64") / cap)
