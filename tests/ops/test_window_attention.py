"""Window attention is masked attention, however it is cut into blocks."""

import functools

import numpy as np
import pytest
from keras import ops

from compiled import compiled, to_numpy
from keras_rgemma.ops.window_attention import reference, window_attention

# float32 logits and weighted sums of some tens of values of magnitude 1.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
# For each length windows of one, some, exactly and more than its tokens.
WINDOWS = {1: (1, 4), 33: (1, 20, 33, 50), 300: (1, 100, 300, 2048)}


@functools.cache
def program(window):
    return compiled(functools.partial(window_attention, window=window))


def naive(query, key, value, documents, window):
    """The reference in float64; a pad gives zeros."""
    arrays = (x.astype("float64") for x in (query, key, value))
    return reference.window_attention(*arrays, positions_of(documents), window)


def sample(batch, length, heads, kv_heads, size, seed=0):
    """Queries, keys and values; keys large enough that a softmax has winners."""
    random = np.random.default_rng(seed)
    shapes = [(batch, length, count, size) for count in (heads, kv_heads, kv_heads)]
    query, key, value = (random.normal(size=shape).astype("float32") for shape in shapes)
    return query, 2.0 * key, value


def rows_of_all_kinds(length):
    """Documents: one, left-padded, right-padded, packed with a pad between, only pads."""
    mask = np.ones((5, length), "int32")
    mask[1, : length // 3] = 0
    mask[2, length - length // 4 :] = 0
    cuts = [length // 5, length // 2, length // 2 + 1]
    for document, cells in enumerate(np.split(np.arange(length), cuts)):
        mask[3, cells] = (1, 2, 0, 3)[document]
    mask[4] = 0
    return mask


def positions_of(documents):
    positions = np.full(documents.shape, -1, "int32")
    for b, t in np.argwhere(documents > 0):
        goes_on = t > 0 and documents[b, t] == documents[b, t - 1]
        positions[b, t] = positions[b, t - 1] + 1 if goes_on else 0
    return positions


@pytest.mark.parametrize("heads, kv_heads", [(3, 1), (4, 2)])
@pytest.mark.parametrize("length, window", [(t, w) for t in WINDOWS for w in WINDOWS[t]])
def test_it_is_masked_attention(length, window, heads, kv_heads):
    arrays = sample(5, length, heads, kv_heads, size=6)
    documents = rows_of_all_kinds(length)
    out = program(window)(*arrays, positions_of(documents))
    assert out.shape == arrays[0].shape
    assert np.all(np.isfinite(out))  # at pads, too
    truth = naive(*arrays, documents, window)
    tokens = documents > 0
    np.testing.assert_allclose(out[tokens], truth[tokens], **TOLERANCE)


@pytest.mark.parametrize("length", [33, 300])
def test_a_query_sees_exactly_window_keys_before_its_own(length):
    """Of W + 1 equal keys each has the same weight, and the next one to the left has none."""
    window = 20
    query, key = np.zeros((2, 1, length, 1, 4), "float32")
    value = np.broadcast_to(np.arange(length, dtype="float32")[None, :, None, None], key.shape)
    out = program(window)(query, key, value, np.arange(length, dtype="int32")[None])
    truth = [np.mean(range(max(0, t - window), t + 1)) for t in range(length)]
    # A mean of 21 numbers up to 300 in float32.
    np.testing.assert_allclose(out[0, :, 0, 0], truth, rtol=1e-5)


def ring_of(x, num_tokens, window):
    """The ring buffer after `num_tokens` tokens a row; slots that never were filled hold junk."""
    ring = np.full((x.shape[0], window, *x.shape[2:]), 100.0, "float32")
    for row, count in enumerate(num_tokens):
        for position in range(max(0, count - window), count):
            ring[row, position % window] = x[row, position]
    return ring


@pytest.mark.parametrize("length, window", [(1, 7), (9, 7), (40, 7), (9, 40), (300, 40)])
def test_a_history_in_a_ring_buffer_continues_one_pass(length, window):
    # As many tokens before as a ring has never, nearly, just, more than once and often held.
    counts = [0, 1, window - 1, window, window + 1, 3 * window + 5]
    arrays = sample(len(counts), max(counts) + length, heads=4, kv_heads=2, size=6, seed=1)
    truth = naive(*arrays, np.ones(arrays[0].shape[:2], int), window)
    rows = [[x[row, n : n + length] for row, n in enumerate(counts)] for x in (*arrays, truth)]
    query, key, value, truth = map(np.stack, rows)
    history = tuple(ring_of(x, counts, window) for x in arrays[1:])
    positions = np.array(counts, "int32")[:, None] + np.arange(length, dtype="int32")
    tokens = np.ones(positions.shape, bool)
    tokens[::2, length - length // 3 :] = False  # pads after the tokens of some rows
    positions[~tokens] = -1
    run = continuing_program(window)
    out = run(query, key, value, positions, history)
    assert np.all(np.isfinite(out))
    np.testing.assert_allclose(out[tokens], truth[tokens], **TOLERANCE)


@functools.cache
def continuing_program(window):
    return compiled(
        lambda query, key, value, positions, history: window_attention(
            query, key, value, positions, window, history
        )
    )


def test_the_reference_continues_from_a_ring_buffer_too():
    arrays = [x.astype("float64") for x in sample(1, 12, heads=4, kv_heads=2, size=6)]
    positions = np.arange(12)[None]
    truth = reference.window_attention(*arrays, positions, 5)
    history = [ring_of(x, [7], 5).astype("float64") for x in arrays[1:]]
    rest = [x[:, 7:] for x in (*arrays, positions)]
    found = reference.window_attention(*rest, 5, history)
    # The ring buffer is rounded to float32.
    np.testing.assert_allclose(found, truth[:, 7:], rtol=0, atol=1e-6)


@pytest.mark.parametrize("length", [1, 9, 40])
def test_a_row_of_pads_after_a_history_stays_finite(length):
    arrays = sample(2, max(9, length), heads=4, kv_heads=2, size=6)
    history = tuple(ring_of(x, [3, 9], 7) for x in arrays[1:])
    positions = np.full((2, length), -1, "int32")
    row = [x[:, :length] for x in arrays]
    assert np.all(np.isfinite(continuing_program(7)(*row, positions, history)))


@pytest.mark.parametrize("dtype, tolerance", [("bfloat16", 0.05), ("float16", 0.01)])
def test_half_precision_attends_to_the_same(dtype, tolerance):
    tensors = [ops.cast(x, dtype) for x in sample(5, 33, heads=3, kv_heads=1, size=6)]
    documents = rows_of_all_kinds(33)
    out = program(20)(*tensors, positions_of(documents))
    truth = naive(*to_numpy(tensors), documents, 20)
    tokens = documents > 0
    # Logits of up to 10 round to 2^-8 (bfloat16) or 2^-11 of themselves, and weights follow them.
    np.testing.assert_allclose(out[tokens], truth[tokens], rtol=0, atol=tolerance)
    assert np.all(np.isfinite(out))
