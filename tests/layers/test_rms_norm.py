"""RMSNorm divides by the root of the mean square, in float32 at every dtype."""

import numpy as np
import pytest
from keras import ops

from compiled import to_numpy
from keras_rgemma.layers.rms_norm import RMSNorm


def formula(x, scale, epsilon):
    x = x.astype("float64")
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + epsilon) * (1.0 + scale)


def norm_with_scale(dtype, size, epsilon=1e-6):
    norm = RMSNorm(epsilon, dtype=dtype)
    norm.build((None, None, size))
    norm.scale.assign(np.linspace(-0.7, 0.9, size))
    return norm, to_numpy(norm.scale.value)


def test_it_is_the_formula():
    x = np.random.default_rng(0).normal(size=(2, 3, 7)).astype("float32")
    norm, scale = norm_with_scale("float32", 7)
    # float32: a handful of roundings of 6e-8.
    np.testing.assert_allclose(to_numpy(norm(x)), formula(x, scale, 1e-6), rtol=1e-6)


def test_the_example_of_its_docstring():
    result = to_numpy(RMSNorm()(np.array([[3.0, 4.0]])))
    np.testing.assert_allclose(result, [[0.8485, 1.1314]], atol=5e-5)  # four digits are printed


@pytest.mark.parametrize("epsilon", [1e-6, 1e-2])
def test_epsilon_is_added_to_the_mean_square(epsilon):
    x = np.array([[1e-3, -1e-3, 0.0]], "float32")
    norm, scale = norm_with_scale("float32", 3, epsilon)
    np.testing.assert_allclose(to_numpy(norm(x)), formula(x, scale, epsilon), rtol=1e-6)
    np.testing.assert_array_equal(to_numpy(norm(np.zeros((1, 3), "float32"))), np.zeros((1, 3)))


@pytest.mark.parametrize("policy, bits", [("mixed_bfloat16", 8), ("mixed_float16", 11)])
def test_half_precision_is_rounded_once_at_the_end(policy, bits):
    """Also where squares (of 1000) are more than float16 holds."""
    norm, scale = norm_with_scale(policy, 50)
    x = np.random.default_rng(0).normal(size=(3, 50)) * [[1.0], [1e-2], [1e3]]
    x = ops.cast(x, norm.compute_dtype)
    result = norm(x)
    assert result.dtype == x.dtype
    # Half a unit in the last place, and a little for float32.
    truth = formula(to_numpy(x), scale, 1e-6)
    np.testing.assert_allclose(to_numpy(result), truth, rtol=1.01 * 2.0**-bits, atol=1e-7)
