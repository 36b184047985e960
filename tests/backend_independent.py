"""A mark for tests of what no backend has a part in."""

import keras
import pytest

# PyTorch is the quickest to start and compiles nothing.
backend_independent = pytest.mark.skipif(
    keras.config.backend() != "torch", reason="the same on every backend: run on PyTorch alone"
)
