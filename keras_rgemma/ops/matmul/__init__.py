"""Multiplies rows by a matrix of floats."""

from keras_rgemma.backend import resolve
from keras_rgemma.types import Tensor


def matmul(
    x: Tensor,
    kernel: Tensor,
    bias: Tensor | None = None,
    *,
    transpose_kernel: bool = False,
    implementation: str = "auto",
) -> Tensor:
    """Multiplies rows by a matrix and adds a bias.

    Args:
        x: float [..., I].
        kernel: float [I, J], or [J, I] with `transpose_kernel`, in the dtype of `x`.
        bias: float [J] in the dtype of `x`, or None.
        transpose_kernel: bool, whether the rows of the kernel are outputs.
        implementation: "auto", or the name of one of this backend's implementations.

    Returns:
        [..., J] in the dtype of `x`.
    """
    return resolve("matmul", implementation)(x, kernel, bias, transpose_kernel)
