"""Every implementation of the product of int8 matrices has the sums of whole numbers."""

import importlib

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiled import compiled
from keras_rgemma.ops.int8_matmul import int8_matmul, reference

BACKEND = importlib.import_module(f"keras_rgemma.ops.int8_matmul.{keras.config.backend()}")
IMPLEMENTATIONS = sorted(BACKEND.IMPLEMENTATIONS)


def numbers(shape, seed, extreme=False):
    random = np.random.default_rng(seed)
    if extreme:
        return random.choice(np.array([-127, 127], "int8"), shape)
    return random.integers(-127, 128, shape).astype("int8")


def check(x, kernel, implementation, transpose=False):
    run = compiled(
        lambda x, kernel: int8_matmul(
            x, kernel, transpose_kernel=transpose, implementation=implementation
        )
    )
    rows = x.reshape(*kernel.shape[:-2], -1, x.shape[-1])
    expected = reference.int8_matmul(rows, kernel, transpose).reshape(*x.shape[:-1], -1)
    found = run(x, kernel)
    assert found.dtype in ("int32", "float32")
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@given(
    shape=st.lists(st.integers(1, 3), max_size=2).map(tuple),
    inputs=st.integers(1, 40),
    outputs=st.integers(1, 40),
    transpose=st.booleans(),
    blocks=st.sampled_from([(), (1,), (3,)]),
    seed=st.integers(0, 99),
)
def test_the_product_is_exact(implementation, shape, inputs, outputs, transpose, blocks, seed):
    x = numbers((*blocks, *shape, inputs), seed)
    kernel = numbers((*blocks, *((outputs, inputs) if transpose else (inputs, outputs))), seed + 1)
    check(x, kernel, implementation, transpose)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("rows", [1, 2, 17])
@pytest.mark.parametrize("transpose", [False, True])
def test_the_largest_numbers_are_exact(implementation, rows, transpose):
    """1,040 products of 127 and 127 are the last whose sum is below 2^24."""
    x = numbers((rows, 1040), 0, extreme=True)
    kernel = np.broadcast_to(x[0], (16, 1040))
    check(x, kernel if transpose else np.ascontiguousarray(kernel.T), implementation, transpose)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_longer_sums_are_right_to_the_last_bits_of_a_float32(implementation):
    x, kernel = numbers((2, 7680), 0), numbers((7680, 8), 1)
    run = compiled(lambda x, kernel: int8_matmul(x, kernel, implementation=implementation))
    expected = reference.int8_matmul(x, kernel)
    largest = np.abs(x.astype("int64")) @ np.abs(kernel.astype("int64"))
    assert (np.abs(run(x, kernel) - expected) <= largest * 2.0**-22).all()


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="only there in parts")
@pytest.mark.parametrize("outputs", [7, 8, 9, 12, 13])
def test_a_large_matrix_is_copied_in_parts(outputs, monkeypatch):
    monkeypatch.setattr(BACKEND, "_ELEMENTS", 4 * 11)
    check(numbers((2, 3, 11), 0), numbers((outputs, 11), 1), "float32", transpose=True)
