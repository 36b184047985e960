"""Settings that every test shares. The backend comes from KERAS_BACKEND."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "jax")
# Less work on machine code, which here is compiled once and run for milliseconds.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import contextlib
import gc
import importlib.util
import signal
from unittest import mock

import hypothesis
import keras
import pytest

# Compilation makes the first example slow and tells nothing about the code.
hypothesis.settings.register_profile("rgemma", deadline=None, max_examples=25, derandomize=True)
hypothesis.settings.load_profile("rgemma")


@pytest.fixture(autouse=True)
def seeded():
    """The same random weights and samples in every run."""
    # TensorFlow's own seed counts for none of them, and setting it empties the cache of functions.
    has_tensorflow = importlib.util.find_spec("tensorflow") is not None
    with mock.patch("tensorflow.random.set_seed") if has_tensorflow else contextlib.nullcontext():
        keras.utils.set_random_seed(0)


@pytest.fixture
def default_handler():
    """Python's own handler, which a process in the background of a shell does not have."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module", autouse=True)
def quick_collections():
    """Keras collects garbage for every weight it quantizes: let it look at new objects alone."""
    gc.collect()
    gc.freeze()
