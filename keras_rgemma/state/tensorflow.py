"""Reads samples and checksums of weights on TensorFlow."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_rgemma.state.checksum import (
    SMALL,
    column_factors,
    row_factors,
    rows_and_columns,
    sample_and_checksum,
)


def values_of(variables: Sequence[keras.Variable]) -> list[Any]:
    """Lists the values of variables."""
    return [variable.value for variable in variables]


def unchanging(values: Sequence[Any]) -> list[tf.Tensor]:
    """Reads variables: later assignments leave what was read as it is, without a copy before.

    Args:
        values: list of `tf.Variable`.

    Returns:
        A list of tensors.
    """
    return [tf.convert_to_tensor(value) for value in values]


def samples_and_checksums(
    values: Sequence[Any], strides: Sequence[tuple[int, ...]]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Reads every so many numbers of each variable, and computes the checksum of all its numbers.

    Args:
        values: list of `tf.Variable` or tensors.
        strides: list of tuples of int, one stride an axis.

    Returns:
        Two lists of NumPy arrays: samples [N], and checksums, two integers each.
    """
    pairs = list(zip(values, strides, strict=True))
    parts = _copied_to_numpy([part for value, steps in pairs for part in _read(value, steps)])
    found = []
    for value, steps in pairs:
        first = next(parts)
        if _is_small(value):
            found.append(sample_and_checksum(first.reshape(value.shape), steps))
        else:
            found.append((first, next(parts)))
    return [sample for sample, _ in found], [checksum for _, checksum in found]


def _is_small(value: Any) -> bool:
    return value.shape.num_elements() <= SMALL


def _read(value: Any, steps: tuple[int, ...]) -> list[tf.Tensor]:
    """Lists tensors [N]: the whole of a small variable; of a large one, sample and checksum."""
    value = tf.convert_to_tensor(value)
    if _is_small(value):
        return [tf.reshape(value, [-1])]
    # As a function the raw operation costs a tenth of Python's slicing.
    sample = tf.raw_ops.StridedSlice(input=value, **_slices(tuple(value.shape), steps))
    rows, columns = rows_and_columns(tuple(value.shape))
    checksum = _checksum_graph(value.shape, value.dtype)(
        value, tf.constant(row_factors(rows)), tf.constant(column_factors(columns))
    )
    return [tf.reshape(sample, [-1]), checksum]


def _copied_to_numpy(tensors: Sequence[tf.Tensor]) -> Iterator[np.ndarray]:
    """Converts tensors [N] to NumPy with one copy from the device for each dtype; an iterator."""
    found = [None] * len(tensors)
    for dtype in {x.dtype for x in tensors}:
        places = [i for i, x in enumerate(tensors) if x.dtype == dtype]
        joined = tf.concat([tensors[i] for i in places], axis=0).numpy()
        end = 0
        for i in places:
            start, end = end, end + tensors[i].shape[0]
            found[i] = joined[start:end]
    return iter(found)


@functools.cache
def _slices(shape: tuple[int, ...], steps: tuple[int, ...]) -> dict[str, tf.Tensor]:
    """Returns the arguments of a strided slice over all of a shape."""
    return {
        "begin": tf.zeros(len(shape), "int32"),
        "end": tf.constant(shape, "int32"),
        "strides": tf.constant(steps, "int32"),
    }


@functools.cache
def _checksum_graph(shape: tf.TensorShape, dtype: tf.DType) -> Callable[..., Any]:
    """Compiles `_checksum` for variables of a shape and a dtype."""
    rows, columns = rows_and_columns(tuple(shape))
    specs = [tf.TensorSpec(size, "uint32") for size in ((rows, 2), (columns,))]
    # XLA reads each number once, and makes no array in between. A function of all shapes would
    # warn that it is traced for each.
    function = tf.function(_checksum, jit_compile=True)
    return function.get_concrete_function(tf.TensorSpec(shape, dtype), *specs)


def _checksum(
    value: tf.Tensor, row_factors_R2: tf.Tensor, column_factors_C: tf.Tensor
) -> tf.Tensor:
    """Computes the checksum of a variable, see `state.checksum`: uint32 [2]."""
    bits_RC = tf.reshape(_bits(value), (row_factors_R2.shape[0], column_factors_C.shape[0]))
    sums_R = tf.reduce_sum(bits_RC * column_factors_C, axis=1)
    return tf.reduce_sum(sums_R[:, None] * row_factors_R2, axis=0)


def _bits(value: tf.Tensor) -> tf.Tensor:
    """Returns the 16 bits of each number that count, uint32."""
    if not value.dtype.is_floating:
        return tf.bitwise.bitwise_and(tf.cast(tf.cast(value, "int32"), "uint32"), 0xFFFF)
    if value.dtype == tf.bfloat16:
        return tf.cast(tf.bitcast(value, "uint16"), "uint32")
    bits = tf.bitcast(tf.cast(value, "float32"), "uint32")
    # To the nearest bfloat16, ties to even, in integers: a cast could take tiny numbers for zero.
    is_odd = tf.bitwise.bitwise_and(tf.bitwise.right_shift(bits, 16), 1)
    return tf.bitwise.right_shift(bits + 0x7FFF + is_odd, 16)
