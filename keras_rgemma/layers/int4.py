"""Multiplies by a matrix that is rounded to int4, as Keras' quantized layers do, but fast.

Keras puts two columns into a byte, and its layers join them again before each product, which takes
longer than the product. Here the even and the odd columns stay apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from keras import ops

from keras_rgemma.ops.on_rows import on_rows
from keras_rgemma.types import Tensor


def is_fast(quantizer: Callable[..., Any] | None, zero: Tensor | None, size: int) -> bool:
    """Returns whether these functions compute what a layer in int4 does.

    Args:
        quantizer: what rounds the layer's inputs, or None.
        zero: the zero points of its groups; None if there are none.
        size: int, of the axis of which each byte holds two numbers, or of a group along it.
    """
    return quantizer is None and zero is not None and size % 2 == 0


def halves(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Unpacks int4: int8 of the same shape from the low and from the high bits of each byte."""
    return ops.right_shift(ops.left_shift(packed, 4), 4), ops.right_shift(packed, 4)


def dequantized(numbers: Tensor, scale: Tensor, zero: Tensor, group_size: int) -> Tensor:
    """Computes `(numbers - zero) * scale` for groups of consecutive rows.

    Args:
        numbers: int8 [I, N].
        scale: float [G, N], one for each group of rows.
        zero: int8 [G, N].
        group_size: int, rows of a group; the last may have fewer.

    Returns:
        Float [I, N] in the dtype of the scale.
    """
    rows, groups = numbers.shape[0], scale.shape[0]
    zero = ops.cast(zero, scale.dtype)
    if groups > 1 and rows % group_size:
        scale, zero = (ops.repeat(x, group_size, axis=0)[:rows] for x in (scale, zero))
        return (ops.cast(numbers, scale.dtype) - zero) * scale
    numbers = ops.cast(ops.reshape(numbers, (groups, rows // groups, -1)), scale.dtype)
    return ops.reshape((numbers - zero[:, None]) * scale[:, None], (rows, -1))


def int4_product(
    inputs: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero: Tensor,
    *,
    group_size: int,
    shape: tuple[int, ...],
) -> Tensor:
    """Multiplies by a rounded matrix.

    Args:
        inputs: float [..., I], or [H, ..., I] for a matrix of H blocks.
        packed: int8 [R, N / 2], the elements of the matrix in their order, two in a byte.
        scale: float [G, N], for groups of consecutive rows.
        zero: int8 [G, N].
        group_size: int, as of `dequantized`.
        shape: tuple of ints, [I, J] or [H, I, J]; J is even.

    Returns:
        Float [..., J] in the dtype of the inputs. The gradient is that of the product with the
        matrix as floats; rounded numbers have none.
    """
    dtype, half_shape = inputs.dtype, (*shape[:-1], shape[-1] // 2)

    @ops.custom_gradient
    def product(
        inputs: Tensor, packed: Tensor, scale: Tensor, zero: Tensor
    ) -> tuple[Tensor, Callable[..., Any]]:
        def matrices() -> Iterator[Tensor]:
            """Computes the even and the odd columns as floats."""
            for i, numbers in enumerate(halves(packed)):
                matrix = dequantized(numbers, scale[:, i::2], zero[:, i::2], group_size)
                yield ops.reshape(ops.cast(matrix, dtype), half_shape)

        def gradient(*args: Tensor, upstream: Tensor | None = None) -> tuple[Tensor | None, ...]:
            upstream = args[0] if upstream is None else upstream
            parts = []
            for i, matrix in enumerate(matrices()):
                turned = ops.swapaxes(matrix, -1, -2)
                parts.append(on_rows(upstream[..., i::2], turned, _product_with(turned)))
            return sum(parts), None, None, None  # of inputs, packed, scale and zero

        columns = [on_rows(inputs, x, _product_with(x)) for x in matrices()]
        y = ops.stack(columns, axis=-1)
        return ops.reshape(y, (*ops.shape(y)[:-2], shape[-1])), gradient

    return product(inputs, packed, scale, zero)


def int4_row_product(
    inputs: Tensor, packed: Tensor, scale: Tensor, zero: Tensor, group_size: int
) -> Tensor:
    """Multiplies by a rounded matrix whose rows are outputs, such as an embedding's.

    Args:
        inputs: float [..., D], D even.
        packed: int8 [V, D / 2].
        scale: float [V, G], for groups of consecutive columns.
        zero: int8 [V, G].
        group_size: int, columns of a group, even; the last may have fewer.

    Returns:
        Float [..., V] in the dtype of the inputs.
    """
    columns = packed.shape[1]
    size = columns if scale.shape[1] == 1 else group_size // 2
    scale, zero = (ops.repeat(x, size, axis=1)[:, :columns] for x in (scale, zero))
    zero = ops.cast(zero, scale.dtype)
    matrices = [(ops.cast(numbers, scale.dtype) - zero) * scale for numbers in halves(packed)]
    matrix = ops.cast(ops.concatenate(matrices, axis=1), inputs.dtype)
    # One product: the sums of two would be rounded before they are added.
    return ops.matmul(
        ops.concatenate([inputs[..., i::2] for i in (0, 1)], -1), ops.transpose(matrix)
    )


def _product_with(matrix: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda rows: ops.matmul(rows, matrix)
