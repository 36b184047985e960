"""Every implementation bounds logits as the reference does, with its gradient."""

import importlib

import keras
import numpy as np
import pytest
from keras import ops

from compiled import compiled
from gradients import gradients
from keras_rgemma.ops.soft_cap import reference, soft_cap

BACKEND = importlib.import_module(f"keras_rgemma.ops.soft_cap.{keras.config.backend()}")
every_implementation = pytest.mark.parametrize("implementation", sorted(BACKEND.IMPLEMENTATIONS))
LOGITS = np.linspace(-90, 90, 181, dtype="float32").reshape(1, 181)
CAP = 30.1


@every_implementation
@pytest.mark.parametrize("dtype, rounding", [("float32", 2.0**-21), ("bfloat16", 2.0**-6)])
def test_it_bounds_logits_in_their_dtype(implementation, dtype, rounding):
    def run(logits):
        # A copy: the memory of the argument may become the result's.
        return soft_cap(ops.cast(logits + 0.0, dtype), CAP, implementation=implementation)

    bounded = run(ops.convert_to_tensor(LOGITS))
    assert keras.backend.standardize_dtype(bounded.dtype) == dtype
    expected = reference.soft_cap(LOGITS, CAP)
    np.testing.assert_allclose(compiled(run)(LOGITS), expected, rtol=0, atol=CAP * rounding)


@every_implementation
def test_its_gradient(implementation):
    def loss(logits):
        return ops.sum(soft_cap(logits * 1.0, CAP, implementation=implementation))

    (gradient,) = gradients(loss, LOGITS)
    expected = 1 - (reference.soft_cap(LOGITS, CAP) / CAP) ** 2
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-6)
