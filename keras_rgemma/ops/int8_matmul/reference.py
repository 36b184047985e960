"""Multiplies int8 matrices in NumPy: what each backend is compared with."""

import numpy as np


def int8_matmul(x: np.ndarray, kernel: np.ndarray, transpose_kernel: bool = False) -> np.ndarray:
    """Computes the product in int64; see the package for the arguments."""
    kernel = np.asarray(kernel, "int64")
    return np.asarray(x, "int64") @ (kernel.swapaxes(-1, -2) if transpose_kernel else kernel)
