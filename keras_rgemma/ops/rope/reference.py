"""Computes RoPE by its definition, in NumPy and float64, for comparison in tests."""

import numpy as np


def rotate(
    x: np.ndarray, positions: np.ndarray, max_wavelength: float, rotated_size: int
) -> np.ndarray:
    """Rotates the first `rotated_size` features of x [B, T, H, K] by positions int [B, T]."""
    half = rotated_size // 2
    frequency = float(max_wavelength) ** (-np.arange(half, dtype="float64") / max(half, 1))
    angle = positions[:, :, None, None].astype("float64") * frequency
    first, second, rest = x[..., :half], x[..., half:rotated_size], x[..., rotated_size:]
    turned = first * np.cos(angle) - second * np.sin(angle)
    other = second * np.cos(angle) + first * np.sin(angle)
    return np.concatenate([turned, other, rest], axis=-1)
