"""Multiplies int8 matrices on TensorFlow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

_ELEMENTS = 1 << 24  # of a kernel that become float32 at a time


def default_implementation() -> str:
    # TensorFlow's own product of int8 on a CPU takes six times as long as that of float32.
    return "float32"


def _int8(rows: tf.Tensor, kernel: tf.Tensor, transpose_kernel: bool) -> tf.Tensor:
    """Lets TensorFlow multiply."""
    return tf.matmul(rows, kernel, transpose_b=transpose_kernel, output_type="int32")


def _float32(rows: tf.Tensor, kernel: tf.Tensor, transpose_kernel: bool) -> tf.Tensor:
    """Multiplies float32 copies; a large matrix, such as an embedding's, is copied in parts."""
    rows = tf.cast(rows, "float32")
    size = max(1, _ELEMENTS // kernel.shape[-1])
    if not transpose_kernel or len(kernel.shape) > 2 or kernel.shape[0] < 2 * size:
        return tf.matmul(rows, tf.cast(kernel, "float32"), transpose_b=transpose_kernel)

    def of_part(part: tf.Tensor) -> tf.Tensor:
        return tf.matmul(rows, tf.cast(part, "float32"), transpose_b=True)

    count = kernel.shape[0] // size
    parts = tf.reshape(kernel[: count * size], (count, size, kernel.shape[1]))
    products = tf.map_fn(of_part, parts, fn_output_signature="float32", parallel_iterations=1)
    product = tf.reshape(tf.transpose(products, (1, 0, 2)), (-1, count * size))
    return tf.concat([product, of_part(kernel[count * size :])], axis=-1)


def lay_out(variable: keras.Variable) -> None:
    """Leaves a matrix as it is stored."""


IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {"float32": _float32, "int8": _int8}
