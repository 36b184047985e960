"""Local attention, and the ring buffer in which every slot holds the right key."""

import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiled import compiled, to_numpy
from keras_rgemma.layers.local_attention import LocalAttention, updated_ring
from keras_rgemma.state.records import AttentionState

ROWS, PIECE, KV_HEADS, SIZE = 3, 4, 2, 3


@functools.cache
def program(window, with_state):
    def run(key, value, positions, state=None):
        return updated_ring(state, key, value, positions, window)

    return compiled(run if with_state else lambda *args: run(*args))


def labels(rows, positions):
    """Keys [..., kv heads, K] that tell which row, position, head and feature they are of."""
    rows, positions = np.broadcast_arrays(rows, positions)
    label = (rows * 10_000 + (positions + 1) * 10.0)[..., None, None]
    return (label + np.arange(KV_HEADS * SIZE).reshape(KV_HEADS, SIZE)).astype("float32")


def expected_ring(lengths, window):
    """The last W keys of each document, in slots p % W; zeros where it was not that long."""
    ring = np.zeros((len(lengths), window, KV_HEADS, SIZE), "float32")
    for row, length in enumerate(lengths):
        for position in range(max(0, length - window), length):
            ring[row, position % window] = labels(row, position)
    return ring


@pytest.mark.parametrize("window", [1, 3, 5])
@given(pieces=st.lists(st.lists(st.integers(0, PIECE), min_size=ROWS, max_size=ROWS), max_size=8))
def test_every_slot_holds_the_latest_position_that_is_its_own(window, pieces):
    """Rows grow by 0 to 4 tokens a piece, the rest of which is pads: W is less, and more."""
    shape = (ROWS, window, KV_HEADS, SIZE)
    state = AttentionState(np.zeros(shape, "float32"), np.zeros(shape, "float32"))
    lengths = np.zeros(ROWS, int)
    for piece in pieces:
        positions = lengths[:, None] + np.arange(PIECE)
        key = labels(np.arange(ROWS)[:, None], positions)
        positions[np.arange(PIECE) >= np.array(piece)[:, None]] = -1
        key[positions < 0] = np.nan
        before, state = state, program(window, True)(key, -key, positions.astype("int32"), state)
        lengths += piece
        for row in np.flatnonzero(np.array(piece) == 0):
            np.testing.assert_array_equal(state.keys[row], before.keys[row])
    np.testing.assert_array_equal(state.keys, expected_ring(lengths, window))
    np.testing.assert_array_equal(state.values, -expected_ring(lengths, window))


@pytest.mark.parametrize("window", [1, 3, 5, 9, 20])
def test_without_a_state_the_ring_is_that_of_the_last_document(window):
    positions = np.array(
        [
            [0, 1, 2, 3, 4, 5, 6, 7, 8],
            [-1, -1, -1, 0, 1, 2, 3, 4, 5],
            [0, 1, 2, 3, 4, 5, -1, -1, -1],
            [0, 1, 2, 3, -1, 0, 1, -1, -1],
            [0, 1, 2, 3, 4, 5, 0, 0, 1],
            [-1, -1, -1, -1, -1, -1, -1, -1, -1],
        ]
    )
    key = labels(np.arange(6)[:, None], positions)
    key[3:5, :5] = 77.0  # other documents
    key[positions < 0] = np.nan
    ring = program(window, False)(key, -key, positions.astype("int32"))
    np.testing.assert_array_equal(ring.keys, expected_ring([9, 6, 6, 2, 2, 0], window))
    np.testing.assert_array_equal(ring.values, -expected_ring([9, 6, 6, 2, 2, 0], window))


@pytest.mark.parametrize("heads, kv_heads", [(3, 1), (4, 2)])
def test_the_layer_is_its_equations(heads, kv_heads):
    """Projections, rotation of the first features, a window, and a biased output."""
    dim, size, window, rotated_size, length = 7, 6, 2, 4, 5
    layer = LocalAttention(heads, kv_heads, size, window, 50.0, rotated_size)
    layer.build((None, None, dim))
    random = np.random.default_rng(0)
    layer.set_weights([random.normal(size=w.shape) for w in layer.weights])
    x = random.normal(size=(1, length, dim)).astype("float32")
    positions = np.arange(length)
    out = compiled(layer)(x, positions[None].astype("int32"))

    assert [w.path.split("/", 1)[-1] for w in layer.weights] == [
        "query/kernel",
        "key/kernel",
        "value/kernel",
        "attention_output/kernel",
        "attention_output/bias",
    ]
    query, key, value, output, bias = (to_numpy(w.value).astype("float64") for w in layer.weights)
    project = lambda kernel, count: (x[0] @ kernel).reshape(length, count, size)  # noqa: E731
    query = turned(project(query, heads), positions, 50.0, rotated_size)
    key = turned(project(key, kv_heads), positions, 50.0, rotated_size)
    value = project(value, kv_heads)
    attended = np.zeros((length, heads, size))
    for t in range(length):
        seen = slice(max(0, t - window), t + 1)
        for h in range(heads):
            own = h * kv_heads // heads
            weights = np.exp(key[seen, own] @ query[t, h] / np.sqrt(size))
            attended[t, h] = weights / weights.sum() @ value[seen, own]
    truth = attended.reshape(length, -1) @ output + bias
    # float32: logits of up to 30, whose error of 1e-6 of them goes into the weights.
    np.testing.assert_allclose(out[0], truth, rtol=1e-4, atol=2e-4)


def turned(x, positions, max_wavelength, rotated_size):
    """RoPE on pairs of features of the first and the second half, as complex numbers."""
    half = rotated_size // 2
    angle = positions[:, None, None] * max_wavelength ** (-np.arange(half) / half)
    pair = (x[..., :half] + 1j * x[..., half:rotated_size]) * np.exp(1j * angle)
    return np.concatenate([pair.real, pair.imag, x[..., rotated_size:]], axis=-1)
