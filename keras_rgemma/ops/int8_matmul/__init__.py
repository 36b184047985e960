"""Multiplies matrices of int8 numbers; the sums have 32 bits."""

import keras

from keras_rgemma.backend import backend_module, resolve
from keras_rgemma.ops.on_rows import on_rows
from keras_rgemma.types import Tensor


def int8_matmul(
    x: Tensor, kernel: Tensor, *, transpose_kernel: bool = False, implementation: str = "auto"
) -> Tensor:
    """Multiplies int8 rows by an int8 matrix, or by one for each block of rows.

    Args:
        x: int8 [..., I]; [H, ..., I] for a kernel of H blocks.
        kernel: int8 [I, J] or [H, I, J]; with `transpose_kernel` [J, I] or [H, J, I].
        transpose_kernel: bool, whether the rows of the kernel are outputs.
        implementation: "auto", or the name of one of this backend's implementations.

    Returns:
        [..., J], int32, or float32 that is exact where no partial sum is above 2^24 (I up to 1,040
        at least) and right to a float32's last bits beyond.
    """
    run = resolve("int8_matmul", implementation)
    return on_rows(x, kernel, lambda rows: run(rows, kernel, transpose_kernel))


def lay_out(variable: keras.Variable) -> None:
    """Stores the matrix [I, J] of a variable as products with it read it, if that matters.

    Call this when a variable has got its value, before anybody computes with it.
    """
    backend_module("keras_rgemma.ops.int8_matmul").lay_out(variable)
