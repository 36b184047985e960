"""The RG-LRU is the loop that its equations describe."""

import functools

import numpy as np
import pytest
from keras import ops

from compiled import compiled, to_numpy
from gradients import gradients
from keras_rgemma.layers.rg_lru import RGLRU

WIDTH, BLOCKS = 6, 3
POSITIONS = np.array(
    [
        [0, 1, 2, 3, 4, 5, 6],
        [-1, -1, 0, 1, 2, 3, 4],
        [0, 1, 2, 3, -1, -1, -1],
        [0, 1, 2, -1, 0, 0, 1],
        [-1, -1, -1, -1, -1, -1, -1],
    ]
)
# float32: exponentials of exponentials, each right to some 1e-7, over seven steps.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


@functools.cache
def layer(dtype=None):
    layer = RGLRU(BLOCKS, dtype=dtype)
    layer.build((None, None, WIDTH))
    random = np.random.default_rng(3)
    layer.set_weights([random.normal(size=w.shape) for w in layer.weights])
    return layer


@functools.cache
def program(dtype=None):
    return compiled(functools.partial(layer(dtype), return_state=True))


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def gate(x, dense):
    """One block after the other; x [L]."""
    kernel, bias = (to_numpy(w.value).astype("float64") for w in dense.weights)
    blocks = x.reshape(BLOCKS, WIDTH // BLOCKS)
    return sigmoid(
        np.concatenate([blocks[h] @ kernel[h] for h in range(BLOCKS)]) + bias.reshape(WIDTH)
    )


def by_loop(layer, x, positions, state):
    """h at each token and after the row; a pad has no h."""
    a_param = to_numpy(layer.a_param.value).astype("float64")
    out, h = np.zeros(x.shape), state.astype("float64")
    for b in range(len(x)):
        for t in np.flatnonzero(positions[b] >= 0):
            x_t, first = x[b, t].astype("float64"), positions[b, t] == 0
            log_a = -8.0 * gate(x_t, layer.a_gate) * np.log1p(np.exp(a_param))
            multiplier = 1.0 if first else np.sqrt(1.0 - np.exp(2.0 * log_a))
            kept = 0.0 if first else np.exp(log_a) * h[b]
            h[b] = out[b, t] = kept + multiplier * gate(x_t, layer.input_gate) * x_t
    return out, h


def sample(positions=POSITIONS):
    random = np.random.default_rng(0)
    return random.normal(size=(*positions.shape, WIDTH)).astype("float32")


def test_it_is_the_loop_of_its_equations():
    x = sample()
    out, state = program()(x, POSITIONS.astype("int32"))
    truth, last = by_loop(layer(), x, POSITIONS, np.zeros((len(x), WIDTH)))
    tokens = POSITIONS >= 0
    np.testing.assert_allclose(out[tokens], truth[tokens], **TOLERANCE)
    np.testing.assert_allclose(state, last, **TOLERANCE)
    assert np.all(np.isfinite(out))


def test_a_state_is_gone_on_from_and_pads_keep_it_to_the_bit():
    positions = np.array([[4, 5, 6], [9, -1, -1], [0, 1, 2], [-1, -1, -1]])
    x = sample(positions)
    state = np.random.default_rng(1).normal(size=(4, WIDTH)).astype("float32")
    out, new_state = program()(x, positions.astype("int32"), state)
    truth, last = by_loop(layer(), x, positions, state)
    tokens = positions >= 0
    np.testing.assert_allclose(out[tokens], truth[tokens], **TOLERANCE)
    np.testing.assert_allclose(new_state, last, **TOLERANCE)
    np.testing.assert_array_equal(new_state[3], state[3])


@pytest.mark.parametrize("policy, tolerance", [("mixed_bfloat16", 0.05), ("mixed_float16", 6e-3)])
def test_half_precision_keeps_the_state_in_float32(policy, tolerance):
    x = ops.cast(sample(), layer(policy).compute_dtype)
    tensors = layer(policy)(x, ops.convert_to_tensor(POSITIONS, "int32"), return_state=True)
    assert tensors[0].dtype == x.dtype
    out, state = to_numpy(tensors)
    assert ops.dtype(tensors[1]) == "float32"
    truth, last = by_loop(layer(policy), to_numpy(x), POSITIONS, np.zeros((len(x), WIDTH)))
    # The gates are in half precision: eight (eleven) bits, a few roundings, values of up to 3.
    tokens = POSITIONS >= 0
    np.testing.assert_allclose(out[tokens], truth[tokens], rtol=0, atol=tolerance)
    np.testing.assert_allclose(state, last, rtol=0, atol=tolerance)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_keeps_the_decay_in_float32(policy):
    """Gates of weight zero are 1/2 in any dtype, so a^7 shows every bit of `a_param`."""
    unit = RGLRU(BLOCKS, dtype=policy)
    unit.build((None, None, WIDTH))
    unit.set_weights([np.zeros(w.shape) for w in unit.weights])
    unit.a_param.assign(np.linspace(-6.3, -2.2, WIDTH))
    positions = ops.convert_to_tensor(POSITIONS[:1] + 20, "int32")
    x = ops.zeros((1, 7, WIDTH), unit.compute_dtype)
    _, state = unit(x, positions, state=ops.ones((1, WIDTH)), return_state=True)
    truth = np.exp(-8.0 * 0.5 * np.log1p(np.exp(np.linspace(-6.3, -2.2, WIDTH)))) ** 7
    # float32; an `a_param` of half precision would be wrong by 1e-3.
    np.testing.assert_allclose(to_numpy(state)[0], truth, rtol=1e-5)


def test_gradients_stay_finite_where_nothing_decays():
    """A radius of 1 in float32: the true derivative of sqrt(1 - a^2) is infinite."""
    unit = RGLRU(BLOCKS)
    unit.build((None, None, WIDTH))
    unit.a_param.assign(np.full(WIDTH, -80.0))
    positions = ops.convert_to_tensor(POSITIONS, "int32")
    (by_x,) = gradients(lambda x: ops.sum(unit(x, positions)), sample())
    assert np.all(np.isfinite(by_x))
    assert np.abs(by_x[0, 0]).min() > 1e-3  # the first token reaches every later h
