"""Threads that use one model at once, with LoRA: each gets what it gets alone."""

import concurrent.futures
import sys
import threading

import keras
import numpy as np
import pytest

import tiny

RUNS = 50
NEW = {0, 25}  # the runs with a model that nothing was compiled for
PROMPTS = ("The quick", "In the beginning")
LIMIT = 4
INT8 = ["ffw_up", "a_gate"]


def new():
    """A model with LoRA on every layer, of which some are in int8; the same one in every call."""
    keras.utils.set_random_seed(0)
    lm = tiny.wordy(tiny.causal_lm())
    lm.quantize("int8", filters=lambda layer: layer.name in INT8)
    lm.backbone.enable_lora(2)
    return lm


def learn(lm):
    random = np.random.RandomState(3)
    for weight in lm.backbone.trainable_weights:
        weight.assign(random.normal(0, 0.7, weight.shape).astype("float32"))
    return lm


def generate(lm):
    return lm.generate(PROMPTS[0], max_new_tokens=LIMIT, stop_token_ids=None)


def stream(lm):
    return "".join(lm.stream(PROMPTS[1], max_new_tokens=LIMIT, stop_token_ids=None))


def at_once(lm, *functions):
    """What functions of a model return that begin at the same time, each in a thread."""
    barrier = threading.Barrier(len(functions))

    def run(function):
        barrier.wait()
        return function(lm)

    with concurrent.futures.ThreadPoolExecutor(len(functions)) as threads:
        return list(threads.map(run, functions))


@pytest.fixture
def restless():
    """Has threads take turns as often as Python lets them."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("restless")
def test_generate_and_stream_at_once_write_what_they_write_alone():
    lm = new()
    before = [generate(lm), stream(lm)]
    learn(lm)
    expected = [generate(lm), stream(lm)]
    # Answers without the adapter would show.
    assert all(one != other for one, other in zip(before, expected, strict=True))
    wrong = []
    for run in range(RUNS):
        found = at_once(learn(new()) if run in NEW else lm, generate, stream)
        wrong += [(run, *pair) for pair in zip(found, expected, strict=True) if pair[0] != pair[1]]
    assert not wrong
