"""What `torch.compile` makes of the decode step writes what the step writes uncompiled."""

import shutil

import keras
import numpy as np
import pytest

import tiny
from laws import test_bound_step

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        keras.config.backend() != "torch", reason="other backends compile without being asked"
    ),
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile calls a C++ compiler"),
]
PROMPTS = [[3, 5, 7, 11, 13, 17, 19, 23, 29]]
LIMIT = 12


def written(lm, prompts, **kwargs):
    rows = {"token_ids": prompts}
    return lm.generate(rows, max_new_tokens=LIMIT, stop_token_ids=None, **kwargs)


@pytest.mark.parametrize("name", ["LoRA, int8", "int4"])
def test_a_compiled_step_writes_the_same(name):
    lm = test_bound_step.CASES[name]()
    expected = []
    for jit_compile in (False, True):
        lm.compile(sampler="greedy", jit_compile=jit_compile)
        outputs, state = written(lm, PROMPTS, return_state=True)
        after = written(lm, [[1]], state=state)
        expected.append([outputs, after])
    same, compiled = map(keras.tree.flatten, expected)
    for one, other in zip(same, compiled, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_compiled_step_sees_weights_that_change():
    lm = test_bound_step.CASES["LoRA"]()
    lm.compile(sampler="greedy", jit_compile=True)
    before = written(lm, PROMPTS)
    weight = lm.backbone.token_embedding.embeddings
    weight.assign(-tiny.numpy(weight))
    compiled = written(lm, PROMPTS)
    lm.compile(sampler="greedy")
    expected = written(lm, PROMPTS)
    for one, other in zip(*map(keras.tree.flatten, (compiled, expected)), strict=True):
        np.testing.assert_array_equal(one, other)
    assert any((np.array(before[x]) != expected[x]).any() for x in before)
