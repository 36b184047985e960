"""RoPE turns by the exact angle at any position that an int32 holds."""

import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

from compiled import compiled, to_numpy
from keras_rgemma.ops.rope import reference, rotate

LAST = 2**31 - 1
# Around each digit of base 2048, around 2^24 (where float32 skips integers), and the ends.
POSITIONS = np.array(
    [
        *(0, 1, 2, 2047, 2048, 2049, 131_071, 131_072, 1_000_003, 2**22 - 1, 2**22, 2**22 + 1),
        *(2**24 - 1, 2**24 + 1, 123_456_789, 2**30, LAST - 2048, LAST - 1, LAST),
    ]
)
# The int32 units are 2^-32 of a turn; three digits of at most 2047 of them, each rounded by half,
# are 4e-6 rad. The law that the design asks for is 1e-5.
ANGLE_TOLERANCE = 1e-5


@functools.cache
def program(max_wavelength, rotated_size):
    return compiled(lambda x, positions: rotate(x, positions, max_wavelength, rotated_size))


def rotated(x, positions, max_wavelength, rotated_size):
    """The reference in float64, whose angles at 2^31 are right to 5e-7 rad."""
    return reference.rotate(x.astype("float64"), positions, max_wavelength, rotated_size)


def heads(batch, length, count, size, seed=0):
    random = np.random.default_rng(seed)
    return random.normal(size=(batch, length, count, size)).astype("float32")


@pytest.mark.parametrize("max_wavelength", [10_000, 37.5])
@pytest.mark.parametrize("rotated_size", [2, 6, 10])
def test_every_feature_turns_by_the_exact_angle(max_wavelength, rotated_size):
    """rotated_size 10 is all of the head."""
    positions = np.stack([POSITIONS, POSITIONS[::-1]])
    x = heads(*positions.shape, 3, 10)
    result = program(max_wavelength, rotated_size)(x, positions.astype("int32"))
    truth = rotated(x, positions, max_wavelength, rotated_size)
    # A wrong angle moves a pair of features by that angle times the pair's length.
    np.testing.assert_allclose(result, truth, rtol=0, atol=ANGLE_TOLERANCE * np.abs(x).max() * 1.5)
    np.testing.assert_array_equal(result[..., rotated_size:], x[..., rotated_size:])


def test_nothing_turns_when_nothing_is_rotated():
    x = heads(2, 3, 2, 10)
    positions = np.array([[5, 6, 7], [0, 1, LAST]], "int32")
    np.testing.assert_array_equal(program(1e4, 0)(x, positions), x)


@given(st.lists(st.integers(0, LAST), min_size=4, max_size=4))
def test_the_angle_is_exact_at_any_position(positions):
    """The pair (1, 0) becomes the cosine and the sine."""
    positions = np.array([positions])
    pairs = np.concatenate([np.ones((1, 4, 1, 3)), np.zeros((1, 4, 1, 3))], axis=-1)
    result = program(1e4, 6)(pairs.astype("float32"), positions.astype("int32"))
    truth = rotated(pairs, positions, 1e4, 6)
    np.testing.assert_allclose(result, truth, rtol=0, atol=ANGLE_TOLERANCE)


@given(st.integers(0, LAST - 40), st.lists(st.integers(0, 40), min_size=4, max_size=4))
def test_products_depend_on_the_distance_alone(start, offsets):
    query, key = heads(1, 4, 1, 6, seed=1), heads(1, 4, 1, 6, seed=2)

    def products(first):
        positions = np.array([offsets]) + first
        turned = [
            program(1e4, 6)(x, positions.astype("int32")).astype("float64") for x in (query, key)
        ]
        return np.einsum("bthk,bshk->bts", *turned)

    lengths = np.linalg.norm(query) * np.linalg.norm(key)
    # Each of two vectors at each of two places turns by an angle that is exact to the tolerance.
    np.testing.assert_allclose(products(start), products(0), atol=4 * ANGLE_TOLERANCE * lengths)


@pytest.mark.parametrize("dtype, bits", [("bfloat16", 8), ("float16", 11)])
def test_half_precision_is_rounded_once_at_the_end(dtype, bits):
    positions = POSITIONS[None]
    x = ops.cast(heads(*positions.shape, 2, 10), dtype)
    assert rotate(x[:, :1], ops.zeros((1, 1), "int32"), 1e4, 6).dtype == x.dtype
    result = program(1e4, 6)(x, positions.astype("int32"))
    truth = rotated(to_numpy(x), positions, 1e4, 6)
    # Half a unit in the last place, beside the error of the angle.
    np.testing.assert_allclose(result, truth, rtol=2.0**-bits, atol=2 * ANGLE_TOLERANCE)
