"""The bounded square root is a square root whose derivative ends at 1000."""

import numpy as np
import pytest
from keras import ops

from compiled import to_numpy
from gradients import gradients
from keras_rgemma.ops.bounded_sqrt import bounded_sqrt

POINTS = np.array([0.0, 1e-12, 1e-7, 2.4e-7, 2.5e-7, 2.6e-7, 1e-4, 0.3, 1.0, 7.0], "float32")


def test_values_are_those_of_the_square_root():
    root = to_numpy(bounded_sqrt(ops.convert_to_tensor(POINTS)))
    # float32: half a unit in the last place, and one more for another library's root.
    np.testing.assert_allclose(root, np.sqrt(POINTS), rtol=2e-7, atol=0)


def test_the_derivative_is_that_of_the_root_up_to_the_bound():
    (slope,) = gradients(lambda x: ops.sum(bounded_sqrt(x)), POINTS)
    truth = 0.5 / np.sqrt(np.maximum(POINTS.astype("float64"), 1.0 / (4.0 * 1000.0**2)))
    # float32, through a reciprocal root that is right to a few units in the last place.
    np.testing.assert_allclose(slope, truth, rtol=1e-6)
    assert slope[0] == pytest.approx(1000.0, rel=1e-6)


def test_the_derivative_multiplies_what_comes_from_above():
    weights = np.linspace(-2.0, 3.0, len(POINTS)).astype("float32")
    loss = lambda x, w: ops.sum(w * bounded_sqrt(x))  # noqa: E731
    by_x, by_weights = gradients(loss, POINTS, weights)
    truth = 0.5 * weights / np.sqrt(np.maximum(POINTS, 2.5e-7))
    np.testing.assert_allclose(by_x, truth, rtol=1e-6)
    np.testing.assert_allclose(by_weights, np.sqrt(POINTS), rtol=2e-7)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_keeps_its_dtype_and_meets_no_nan(dtype):
    x = ops.cast(POINTS, dtype)
    root = bounded_sqrt(x)
    assert root.dtype == x.dtype
    # Eight bits of bfloat16 give 2^-8.
    np.testing.assert_allclose(to_numpy(root), np.sqrt(to_numpy(x)), rtol=2**-8)
    (slope,) = gradients(lambda x: ops.sum(ops.cast(bounded_sqrt(x), "float32")), x)
    # float16 holds 1 / (4 * 1000^2) as four of its smallest units, so the bound is rough there.
    assert np.all(slope > 0.0) and np.all(slope < 1200.0)
