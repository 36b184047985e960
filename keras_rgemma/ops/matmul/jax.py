"""Multiplies rows by a matrix on JAX."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from keras_rgemma.ops.jax import target_platform

# A matrix [J, I] is the left factor of its product with that few rows, in half precision only if
# they are that long: with jaxlib 0.10.2 the product takes two thirds of the time so, or in float32
# four fifths (benchmarks/products.md).
FEW_ROWS = 16
LONG_ROW = 1536


def default_implementation() -> str:
    # Measured with jaxlib 0.10.2: XLA on a CPU takes twice as long for half precision if the sums
    # are to be rounded in its product, or if the product has a single row; five times for a matrix
    # whose rows are outputs. On an H100 a token of 2B took five times as long as with two rows
    # (benchmarks/gpu.md). A TPU's compiler reckons with three times (benchmarks/stacked.md).
    on = {"cpu": "float32_sums", "gpu": "two_rows", "tpu": "two_rows"}
    return on.get(target_platform(), "xla")


def _xla(
    x: jax.Array, kernel: jax.Array, bias: jax.Array | None, transpose_kernel: bool
) -> jax.Array:
    """Lets XLA multiply."""
    y = jnp.matmul(x, kernel.T if transpose_kernel else kernel)
    return y if bias is None else y + bias


def _two_rows(
    x: jax.Array, kernel: jax.Array, bias: jax.Array | None, transpose_kernel: bool
) -> jax.Array:
    """Multiplies as `_xla`, but a single row beside a row of zeros.

    Of one row XLA makes a sum of products: on a GPU it writes an array of all the products first,
    in half precision rounded.
    """
    if not _is_one(math.prod(x.shape[:-1])):
        return _xla(x, kernel, bias, transpose_kernel)
    rows = _beside_zeros(x.reshape((1, -1)))
    return _xla(rows, kernel, bias, transpose_kernel)[:1].reshape((*x.shape[:-1], -1))


def _is_one(count: object) -> bool:
    return isinstance(count, int) and count == 1  # not a symbol of an export


def _beside_zeros(row: jax.Array) -> jax.Array:
    """Puts a row of zeros below a row: [1, I] -> [2, I]."""
    return jnp.pad(row, ((0, 1), (0, 0)))


def _float32_sums(
    x: jax.Array, kernel: jax.Array, bias: jax.Array | None, transpose_kernel: bool
) -> jax.Array:
    """Rounds sums of half precision after the product, of two rows at least.

    A matrix [J, I] of float32 is read as it lies.
    """
    dtype = jnp.result_type(x, kernel)
    if dtype not in (jnp.bfloat16, jnp.float16) and not (dtype == "float32" and transpose_kernel):
        return _xla(x, kernel, bias, transpose_kernel)
    rows = x.reshape((math.prod(x.shape[:-1]), x.shape[-1])).astype(dtype)
    y = _product(transpose_kernel, rows, kernel.astype(dtype))
    y = y.reshape((*x.shape[:-1], y.shape[-1]))
    return y if bias is None else y + bias


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(transpose_kernel: bool, rows: jax.Array, kernel: jax.Array) -> jax.Array:
    """Multiplies [M, I] by [I, J], or by [J, I] with `transpose_kernel`."""
    axis = 1 if transpose_kernel else 0
    is_one = _is_one(rows.shape[0]) and _is_half(rows)
    if is_one:
        rows = _beside_zeros(rows)
    if transpose_kernel and _is_faster_on_the_left(rows):
        # Without the barrier XLA puts the rows on the left again.
        y = jax.lax.optimization_barrier(_sums(kernel, rows, axis)).T.astype(rows.dtype)
    else:
        y = _sums(rows, kernel, axis).astype(rows.dtype)
    return y[:1] if is_one else y


def _is_faster_on_the_left(rows: jax.Array) -> bool:
    count, length = rows.shape
    is_long = length >= LONG_ROW or not _is_half(rows)
    return isinstance(count, int) and count <= FEW_ROWS and is_long


def _is_half(x: jax.Array) -> bool:
    return x.dtype.itemsize == 2


def _forward(
    transpose_kernel: bool, rows: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _product(transpose_kernel, rows, kernel), (rows, kernel)


def _backward(
    transpose_kernel: bool, inputs: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    rows, kernel = inputs
    rows_gradient = _product(not transpose_kernel, gradient, kernel)
    left, right = (gradient, rows) if transpose_kernel else (rows, gradient)
    return rows_gradient, _sums(left.T, right, 0).astype(kernel.dtype)


_product.defvjp(_forward, _backward)


def _sums(left: jax.Array, right: jax.Array, axis: int) -> jax.Array:
    """Contracts the last axis of `left` with an axis of `right`, in float32."""
    contracted = (((1,), (axis,)), ((), ()))
    return jax.lax.dot_general(left, right, contracted, preferred_element_type="float32")


IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {
    "float32_sums": _float32_sums,
    "two_rows": _two_rows,
    "xla": _xla,
}
