"""Multiplies by a matrix that is rounded to int8, as Keras' quantized layers do, but fast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_rgemma.ops.int8_matmul import int8_matmul
from keras_rgemma.ops.on_rows import on_rows
from keras_rgemma.types import Tensor


def int8_product(
    inputs: Tensor,
    kernel: Tensor,
    scale: Tensor,
    quantizer: Callable[..., Any],
    *,
    transpose_kernel: bool = False,
) -> Tensor:
    """Rounds each row of inputs to int8 and multiplies by a rounded matrix.

    Args:
        inputs: float [..., I], or [H, ..., I] for a kernel of H blocks.
        kernel: int8 [I, J] or [H, I, J]; with `transpose_kernel` [J, I] or [H, J, I].
        scale: float that broadcasts with the result: rounded / scale is the matrix.
        quantizer: callable that rounds inputs along an axis: `AbsMaxQuantizer` of Keras.
        transpose_kernel: bool.

    Returns:
        Float [..., J] in the dtype of the inputs. The gradient is that of the product with the
        matrix as floats; rounded numbers have none.
    """
    dtype = keras.backend.standardize_dtype(inputs.dtype)

    @ops.custom_gradient
    def product(inputs: Tensor, kernel: Tensor, scale: Tensor) -> tuple[Tensor, Callable[..., Any]]:
        def gradient(*args: Tensor, upstream: Tensor | None = None) -> tuple[Tensor | None, ...]:
            upstream = args[0] if upstream is None else upstream
            matrix = ops.cast(kernel, dtype)
            if not transpose_kernel:
                matrix = ops.swapaxes(matrix, -1, -2)
            scaled = upstream / scale
            return on_rows(scaled, matrix, lambda rows: ops.matmul(rows, matrix)), None, None

        rounded, inputs_scale = quantizer(inputs, axis=-1)
        y = int8_matmul(rounded, kernel, transpose_kernel=transpose_kernel)
        return ops.cast(y, dtype) / (inputs_scale * scale), gradient

    return product(inputs, kernel, ops.cast(scale, dtype))
