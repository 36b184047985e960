"""Multiplies rows by a matrix in NumPy: what each backend is compared with."""

import numpy as np


def matmul(
    x: np.ndarray,
    kernel: np.ndarray,
    bias: np.ndarray | None = None,
    transpose_kernel: bool = False,
) -> np.ndarray:
    """Computes the product and the sum in float64; see the package for the arguments."""
    kernel = np.asarray(kernel, "float64")
    y = np.asarray(x, "float64") @ (kernel.T if transpose_kernel else kernel)
    return y if bias is None else y + np.asarray(bias, "float64")
