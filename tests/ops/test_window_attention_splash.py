"""Splash attention as local attention, in Pallas' interpreter, and lowered for TPUs."""

import functools

import keras
import numpy as np
import pytest
from test_window_attention import (
    TOLERANCE,
    naive,
    positions_of,
    ring_of,
    rows_of_all_kinds,
    sample,
)

from keras_rgemma.ops.places import places_of
from keras_rgemma.ops.window_attention import reference
from keras_rgemma.ops.window_attention import window_attention as operation

if keras.config.backend() != "jax":
    pytest.skip("Pallas is JAX's", allow_module_level=True)

import jax
import jax.numpy as jnp

from compiled import QUICK
from keras_rgemma.ops.window_attention.jax.splash import attend

SIZE = 128  # of a head; TPUs have no smaller tiles


@functools.cache
def program(window, interpret=True):
    def run(query, key, value, positions, history=None):
        return attend(query, key, value, places_of(positions), window, history, interpret)

    return jax.jit(run, compiler_options=QUICK)


@pytest.mark.parametrize("window, heads, kv_heads", [(1, 2, 2), (100, 3, 1), (2048, 4, 2)])
def test_it_is_masked_attention(window, heads, kv_heads):
    arrays = sample(5, 300, heads, kv_heads, SIZE)
    documents = rows_of_all_kinds(300)
    out = np.asarray(program(window)(*arrays, positions_of(documents)))
    assert out.shape == arrays[0].shape
    assert np.all(np.isfinite(out))  # at pads, too
    tokens = documents > 0
    np.testing.assert_allclose(out[tokens], naive(*arrays, documents, window)[tokens], **TOLERANCE)


@pytest.mark.parametrize("length, window", [(40, 7), (140, 200)])
def test_a_history_in_a_ring_buffer_continues_one_pass(length, window):
    counts = [0, window - 1, window, 3 * window + 5]
    arrays = sample(len(counts), max(counts) + length, 2, 1, SIZE, seed=1)
    truth = naive(*arrays, np.ones(arrays[0].shape[:2], int), window)
    rows = [[x[row, n : n + length] for row, n in enumerate(counts)] for x in (*arrays, truth)]
    query, key, value, truth = map(np.stack, rows)
    history = tuple(ring_of(x, counts, window) for x in arrays[1:])
    positions = np.array(counts, "int32")[:, None] + np.arange(length, dtype="int32")
    tokens = np.ones(positions.shape, bool)
    tokens[::2, length - length // 3 :] = False  # pads after the tokens of some rows
    positions[~tokens] = -1
    out = np.asarray(program(window)(query, key, value, positions, history))
    assert np.all(np.isfinite(out))
    np.testing.assert_allclose(out[tokens], truth[tokens], **TOLERANCE)
    # A document that begins in the row sees nothing before it.
    positions[1::2, -5:] = np.arange(5)
    out = np.asarray(program(window)(query, key, value, positions, history))
    arrays = [x[1::2, -5:].astype("float64") for x in (query, key, value)]
    truth = reference.window_attention(*arrays, positions[1::2, -5:], window)
    np.testing.assert_allclose(out[1::2, -5:], truth, **TOLERANCE)


def test_one_new_token_needs_no_kernel():
    arrays = sample(2, 9, 4, 2, size=6)
    history = tuple(ring_of(x, [8, 8], 5) for x in arrays[1:])
    row = [x[:, 8:] for x in arrays]
    out = program(5, interpret=False)(*row, np.full((2, 1), 8, "int32"), history)
    truth = naive(*arrays, np.ones((2, 9), int), 5)[:, 8:]
    np.testing.assert_allclose(out, truth, **TOLERANCE)


def test_gradients_are_those_of_blocks():
    *arrays, weights = *sample(4, 150, 2, 1, SIZE), sample(4, 150, 2, 1, SIZE, seed=2)[0]
    documents = rows_of_all_kinds(150)[:4]
    places = places_of(jnp.asarray(positions_of(documents)))
    weights = jnp.where((documents > 0)[:, :, None, None], weights, 0.0)
    results = []
    for run in (
        lambda *x: attend(*x, places, 40, interpret=True),
        lambda *x: operation(*x, places, 40, implementation="blocks"),
    ):
        loss = lambda *x, run=run: jnp.sum(run(*x) * weights)  # noqa: E731
        gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)), compiler_options=QUICK)
        results.append(gradients(*arrays))
    for one, other in zip(*results, strict=True):
        # Sums of 128 and of 40 products of magnitude 1 and 10.
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_a_tpu_gets_the_kernels():
    query, key, value = (x.astype("bfloat16") for x in sample(1, 300, 2, 1, SIZE))
    positions = np.arange(300, dtype="int32")[None] + 5
    history = tuple(x[:, :200] for x in (key, value))

    def loss(*arrays):
        out = attend(*arrays, places_of(positions), 200, history)
        return jnp.sum(out.astype("float32"))

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    program = jax.export.export(gradients, platforms=["tpu"])(query, key, value)
    assert program.mlir_module().count("tpu_custom_call") >= 3


def test_another_device_is_refused_when_the_program_is_made():
    arrays, positions = sample(1, 4, 2, 1, SIZE), np.arange(4, dtype="int32")[None]
    run = functools.partial(operation, window=2, implementation="splash")
    for call in (run, jax.jit(run)):
        with pytest.raises(ValueError, match=r"'splash'.*runs on TPUs.*Received.*'cpu'"):
            call(*arrays, positions)
