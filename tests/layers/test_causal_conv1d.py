"""The causal convolution is a loop over taps that stops where the document begins."""

import functools

import numpy as np
import pytest
from keras import ops

from compiled import compiled
from keras_rgemma.layers.causal_conv1d import CausalConv1D, causal_conv1d

CHANNELS = 3
# float32: a sum of at most five terms of magnitude 1.
TOLERANCE = {"rtol": 1e-6, "atol": 2e-6}
# Positions of rows that are whole, left-padded, right-padded, packed, and without a token.
POSITIONS = np.array(
    [
        [0, 1, 2, 3, 4, 5, 6],
        [-1, -1, 0, 1, 2, 3, 4],
        [0, 1, 2, 3, -1, -1, -1],
        [0, 1, 2, -1, 0, 0, 1],
        [-1, -1, -1, -1, -1, -1, -1],
    ]
)

every_width = pytest.mark.parametrize("width", [1, 2, 4])


@functools.cache
def program(with_state):
    def run(x, kernel, bias, positions, state=None):
        return causal_conv1d(x, positions, state, True, kernel=kernel, bias=bias)

    return compiled(run if with_state else lambda *args: run(*args))


def by_loop(x, kernel, bias, positions):
    width = len(kernel)
    y = np.zeros_like(x, "float64")
    for b, t in np.argwhere(positions >= 0):
        y[b, t] = bias
        for back in range(min(width - 1, positions[b, t]) + 1):
            y[b, t] += kernel[width - 1 - back] * x[b, t - back]
    return y


def last_inputs(x, positions, reach):
    """The last `reach` inputs of each row's last document, after zeros."""
    state = np.zeros((len(x), reach, x.shape[-1]), "float32")
    for b, row in enumerate(positions):
        tokens = np.flatnonzero(row >= 0)
        if len(tokens):
            document = x[b, tokens[-1] - row[tokens[-1]] : tokens[-1] + 1]
            inputs = document[max(0, len(document) - reach) :]
            state[b, reach - len(inputs) :] = inputs
    return state


def sample(width, length, batch):
    random = np.random.default_rng(width)
    shapes = [(batch, length, CHANNELS), (width, CHANNELS), (CHANNELS,)]
    return [random.normal(size=shape).astype("float32") for shape in shapes]


@every_width
def test_it_is_a_loop_over_taps_within_documents(width):
    x, kernel, bias = sample(width, 7, batch=5)
    y, state = program(False)(x, kernel, bias, POSITIONS.astype("int32"))
    tokens = POSITIONS >= 0
    truth = by_loop(x, kernel, bias, POSITIONS)
    np.testing.assert_allclose(y[tokens], truth[tokens], **TOLERANCE)
    assert np.all(np.isfinite(y))
    np.testing.assert_array_equal(state, last_inputs(x, POSITIONS, width - 1))


@every_width
def test_pieces_with_pads_after_them_are_one_pass(width):
    """Rows of different lengths, in pieces that hold from none to all of their places."""
    whole, kernel, bias = sample(width, 9, batch=3)
    counts = [[4, 0, 2, 3], [0, 0, 0, 4], [1, 1, 1, 1]]
    truth = by_loop(whole, kernel, bias, np.tile(np.arange(9), (3, 1)))
    state = np.zeros((3, width - 1, CHANNELS), "float32")
    done = np.zeros(3, int)
    for piece in np.transpose(counts):
        x = np.full((3, 4, CHANNELS), 50.0, "float32")  # junk at pads
        positions = np.full((3, 4), -1, "int32")
        for row, count in enumerate(piece):
            x[row, :count] = whole[row, done[row] : done[row] + count]
            positions[row, :count] = np.arange(done[row], done[row] + count)
        y, new_state = program(True)(x, kernel, bias, positions, state)
        for row, count in enumerate(piece):
            expected = truth[row, done[row] : done[row] + count]
            np.testing.assert_allclose(y[row, :count], expected, **TOLERANCE)
            if count == 0:
                np.testing.assert_array_equal(new_state[row], state[row])
        done, state = done + piece, new_state
    for row, count in enumerate(done):
        only = whole[row : row + 1, :count]
        np.testing.assert_array_equal(
            state[row], last_inputs(only, np.arange(count)[None], width - 1)[0]
        )


def test_the_layer_is_the_function_of_its_weights():
    x, kernel, bias = sample(4, 7, batch=5)
    layer = CausalConv1D(4)
    layer.build(x.shape)
    layer.kernel.assign(kernel)
    layer.bias.assign(bias)
    y = ops.convert_to_numpy(layer(x, ops.convert_to_tensor(POSITIONS, "int32")))
    tokens = POSITIONS >= 0
    truth = by_loop(x, kernel, bias, POSITIONS)
    np.testing.assert_allclose(y[tokens], truth[tokens], **TOLERANCE)
