"""Multiplies int8 matrices on JAX."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import keras

from keras_rgemma.ops.jax import target_platform
from keras_rgemma.ops.matmul.jax import FEW_ROWS


def default_implementation() -> str:
    # Measured with jaxlib 0.10.2: XLA on a CPU multiplies two rows by a matrix of int8 in a
    # seventh of the time that it needs for one, and in two thirds of that if the matrix is the left
    # factor (benchmarks/products.md).
    return "two_rows" if target_platform() == "cpu" else "dot"


def _dot(rows: jax.Array, kernel: jax.Array, transpose_kernel: bool) -> jax.Array:
    """Lets XLA multiply. A transposed kernel would be copied, as int32, before a loop."""
    blocks = tuple(range(kernel.ndim - 2))
    axis = kernel.ndim - (1 if transpose_kernel else 2)
    dimensions = ((rows.ndim - 1,), (axis,)), (blocks, blocks)
    return jax.lax.dot_general(rows, kernel, dimensions, preferred_element_type="int32")


def _two_rows(rows: jax.Array, kernel: jax.Array, transpose_kernel: bool) -> jax.Array:
    """Adds a row of zeros to a single one, and has a matrix [J, I] on the left of a few rows."""
    count = rows.shape[-2]
    if count == 1:
        rows = jnp.concatenate([rows, jnp.zeros_like(rows)], axis=-2)
    is_few = isinstance(count, int) and count <= FEW_ROWS  # not a symbol of an export
    if transpose_kernel and is_few and kernel.ndim == 2:
        # Without the barrier XLA puts the rows on the left again.
        y = jax.lax.optimization_barrier(_dot(kernel, rows, True)).T
    else:
        y = _dot(rows, kernel, transpose_kernel)
    return y[..., :count, :]


def lay_out(variable: keras.Variable) -> None:
    """Leaves a matrix as it is stored."""


IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {"two_rows": _two_rows, "dot": _dot}
