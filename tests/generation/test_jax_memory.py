"""On JAX a large model in half precision is not copied to float32 as a whole while it decodes."""

import keras
import numpy as np
import pytest

from generation import plain

if keras.config.backend() != "jax":
    pytest.skip("programs of JAX", allow_module_level=True)

import jax
import jax.numpy as jnp

from keras_rgemma.generation import jax as programs


def temporary_bytes(options):
    """What a loop over products with a bfloat16 matrix keeps beside it."""
    weights = jnp.ones((2, 256, 256), "bfloat16")

    def loop(x, weights):
        return jax.lax.fori_loop(0, 3, lambda _, x: weights[1].T @ (weights[0].T @ x), x)

    compiled = jax.jit(loop, compiler_options=options).lower(jnp.ones(256, "bfloat16"), weights)
    return compiled.compile().memory_analysis().temp_size_in_bytes, 2 * weights.nbytes


def test_the_options_keep_copies_out_of_loops():
    default, copies = temporary_bytes(None)
    saving, _ = temporary_bytes(programs._save_memory())
    assert saving < copies <= default  # else XLA no longer needs to be told


def test_a_large_model_is_told_and_writes_the_same(monkeypatch):
    lm = plain.lively_model(dtype="bfloat16")
    prompt = {"token_ids": np.array([[5, 6, 7]])}
    expected = lm.generate(prompt, max_new_tokens=4, stop_token_ids=None)["token_ids"]
    assert programs.compiler_options(lm) is None
    monkeypatch.setattr(programs, "_LARGE", 0)
    assert programs.compiler_options(lm) is not None
    assert programs.compiler_options(plain.lively_model()) is None
    lm.compile(sampler="greedy")
    found = lm.generate(prompt, max_new_tokens=4, stop_token_ids=None)["token_ids"]
    np.testing.assert_array_equal(found, expected)


def test_matrices_are_not_joined_where_xla_would_write_the_joint_one(monkeypatch):
    lm = plain.lively_model()
    options = {}
    for capability in ((7, 5), (8, 0), None):
        monkeypatch.setattr(programs, "cuda_capability", lambda: capability)  # noqa: B023
        options[capability] = programs.compiler_options(lm)
    assert options == {(7, 5): {"xla_gpu_dot_merger_threshold_mb": "0"}, (8, 0): None, None: None}


def test_an_option_that_xla_does_not_have_is_left_out():
    assert programs._accepted(xla_no_such_option="1") is None
