"""The state of a model holds all that it has read, and nothing else."""

import functools

import keras
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from keras import ops

from compiled import compiled, program, to_numpy
from keras_rgemma import RGemmaBackbone
from keras_rgemma.ops.documents import document_positions
from keras_rgemma.state.records import RecurrentState

WINDOW, VOCABULARY, ROWS = 5, 31, 3
# The piece that holds W + 1 tokens, and a text that is longer than one block of queries (32).
PIECE, LENGTH = WINDOW + 1, 41
# float32: hidden states of magnitude 3 that went through four blocks in sums of another order.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@functools.cache
def backbone():
    """Both kinds of blocks after each kind, no two sizes equal, no weight zero."""
    keras.utils.set_random_seed(0)
    return randomize(new_backbone("float32"))


def randomize(model):
    random = np.random.default_rng(0)
    for weight in model.weights:
        if weight.path.endswith(("bias", "scale")):
            weight.assign(random.normal(scale=0.3, size=weight.shape))
        elif weight.path.endswith("conv_1d/kernel"):
            weight.assign(random.normal(scale=0.5, size=weight.shape))
    return model


def new_backbone(dtype, **sizes):
    sizes = {
        "vocabulary_size": VOCABULARY,
        "num_layers": 3,
        "hidden_dim": 10,
        "intermediate_dim": 14,
        "num_query_heads": 3,
        "head_dim": 8,
        "lru_dim": 12,
        "block_types": ("recurrent", "attention"),
        "sliding_window_size": WINDOW,
        **sizes,
    }
    return RGemmaBackbone(**sizes, dtype=dtype)


@functools.cache
def step():
    return compiled(backbone().step)


def forward_of(model):
    return lambda token_ids, mask: model({"token_ids": token_ids, "padding_mask": mask})


@functools.cache
def forward():
    return compiled(forward_of(backbone()))


@functools.cache
def layers_of_rows():
    model = backbone()  # outside of the program: TensorFlow would build it inside

    def run(token_ids, padding_mask):
        return model.call_layers(token_ids, document_positions(padding_mask), return_state=True)

    return compiled(run)


def empty(rows=ROWS):
    return to_numpy(backbone().initial_state(rows))


def text(rows=ROWS, length=LENGTH, seed=0):
    return np.random.default_rng(seed).integers(0, VOCABULARY, (rows, length)).astype("int32")


def ones(token_ids):
    return np.ones(token_ids.shape, "int32")


@functools.cache
def one_pass():
    return step()(text(), ones(text()), empty())


def check_states(result, truth, **tolerance):
    pairs = zip(keras.tree.flatten(result), keras.tree.flatten(truth), strict=True)
    for found, expected in pairs:
        assert found.shape == expected.shape and found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, **(tolerance or TOLERANCE))


def row_of(state, row):
    return keras.tree.map_structure(lambda x: x[row : row + 1], state)


def read_alone(document):
    """The hidden states and the state of one document, token by token."""
    return _read_alone(tuple(document.tolist()))


@functools.cache
def _read_alone(document):
    state, hidden = empty(1), []
    for token in document:
        column = np.array([[token]], "int32")
        out, state = step()(column, ones(column), state)
        hidden.append(out)
    return np.concatenate(hidden, axis=1), state


def test_one_pass_is_the_forward_pass_of_the_model():
    hidden, state = one_pass()
    np.testing.assert_allclose(hidden, forward()(text(), ones(text())), **TOLERANCE)
    assert state.num_tokens.tolist() == [LENGTH] * ROWS


@settings(max_examples=6)
@given(st.lists(st.sampled_from([1, 2, 3, WINDOW - 1, WINDOW, WINDOW + 1]), min_size=41))
@example([1] * LENGTH)
@example([33, 8])
@example([8, 33])
def test_any_split_is_one_pass(sizes):
    """Pieces of W - 1, W, W + 1 tokens, and of more than a block of queries."""
    hidden, truth = one_pass()
    start, state, pieces = 0, empty(), []
    for size in sizes:
        piece = text()[:, start : start + size]
        if not piece.size:
            break
        out, state = step()(piece, ones(piece), state)
        pieces.append(out)
        start += size
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), hidden, **TOLERANCE)
    check_states(state, truth)


@pytest.mark.parametrize(
    "sizes",
    [
        {"num_query_heads": 4, "num_key_value_heads": 2},
        {"conv_width": 1},
        {"sliding_window_size": 1},
    ],
    ids=str,
)
def test_models_of_other_sizes_split_alike(sizes):
    model = randomize(new_backbone("float32", **sizes))
    run, state, pieces = compiled(model.step), to_numpy(model.initial_state(ROWS)), []
    token_ids = text(length=36)
    hidden, truth = run(token_ids, ones(token_ids), state)
    for piece in np.split(token_ids, 3, axis=1):
        out, state = run(piece, ones(piece), state)
        pieces.append(out)
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), hidden, **TOLERANCE)
    check_states(state, truth)


@settings(max_examples=12)
@given(
    pieces=st.lists(st.lists(st.integers(0, PIECE), min_size=ROWS, max_size=ROWS), max_size=6),
    junk=st.integers(0, VOCABULARY - 1),
)
@example(pieces=[[0, 3, 6], [0, 6, 6], [0, 0, 1], [6, 0, 0]], junk=7)
def test_pads_after_the_tokens_of_a_piece_change_nothing(pieces, junk):
    """Rows take 0 to 6 tokens of a piece each, and what stands at its pads is any token."""
    hidden, _ = one_pass()
    state, lengths = empty(), np.zeros(ROWS, int)
    for counts in pieces:
        token_ids = np.full((ROWS, PIECE), junk, "int32")
        mask = np.zeros((ROWS, PIECE), "int32")
        for row, count in enumerate(counts):
            token_ids[row, :count] = text()[row, lengths[row] : lengths[row] + count]
            mask[row, :count] = 1
        out, new_state = step()(token_ids, mask, state)
        assert np.all(np.isfinite(out))
        for row, count in enumerate(counts):
            expected = hidden[row, lengths[row] : lengths[row] + count]
            np.testing.assert_allclose(out[row, :count], expected, **TOLERANCE)
            if count == 0:
                check_states(row_of(new_state, row), row_of(state, row), rtol=0, atol=0)
        lengths += counts
        state = new_state
    for row, length in enumerate(lengths):
        assert state.num_tokens[row] == length
        check_states(row_of(state, row), state_after(row, length))


@functools.cache
def state_after(row, length):
    """The state after the first tokens of a row of the text, one after the other."""
    if length == 0:
        return row_of(empty(), row)
    return row_of(states_token_by_token()[length - 1], row)


@functools.cache
def states_token_by_token():
    states = [empty()]
    for t in range(LENGTH):
        column = text()[:, t : t + 1]
        states.append(step()(column, ones(column), states[-1])[1])
    return states[1:]


# Rows of 17 places: where documents stand, by the number of their tokens; 0 and less are pads.
ROWS_OF_DOCUMENTS = {
    "left pads": [-3, 14],
    "right pads": [14, -3],
    "pads on both sides": [-6, 6, -5],
    "packed": [3, 5, 1, 8],
    "packed, with pads between": [-1, 6, -2, 4, -1, 2, -1],
    "a last document of one token": [16, 1],
    "a last document of W tokens": [12, 5],
    "a last document of W + 1 tokens": [11, 6],
    "full": [17],
    "only pads": [-17],
}


@functools.cache
def packed_rows():
    """Token ids and masks of all rows, and their documents as (row, first place, tokens)."""
    token_ids = text(len(ROWS_OF_DOCUMENTS), 17, seed=5)
    mask, documents = np.zeros(token_ids.shape, "int32"), []
    for row, runs in enumerate(ROWS_OF_DOCUMENTS.values()):
        place = 0
        for number, run in enumerate(runs, start=1):
            if run > 0:
                mask[row, place : place + run] = number
                documents.append((row, place, token_ids[row, place : place + run]))
            place += abs(run)
        assert place == 17
    return token_ids, mask, documents


def test_padded_and_packed_documents_are_those_documents_alone():
    token_ids, mask, documents = packed_rows()
    hidden = forward()(token_ids, mask)
    assert np.all(np.isfinite(hidden))
    for row, place, tokens in documents:
        alone, _ = read_alone(tokens)
        found = hidden[row : row + 1, place : place + len(tokens)]
        np.testing.assert_allclose(found, alone, **TOLERANCE)


@pytest.mark.parametrize("length", [1, WINDOW, 14])
def test_reading_alone_is_the_forward_pass_on_that_document(length):
    """So that the laws here compare with the model as it is trained."""
    document = text(1, length, seed=6)
    alone, _ = read_alone(document[0])
    np.testing.assert_allclose(forward()(document, ones(document)), alone, **TOLERANCE)


def test_a_mask_of_booleans_is_one_document():
    token_ids, mask, _ = packed_rows()
    rows = [0, 1, 2, 8, 9]
    found = forward()(token_ids[rows], mask[rows] > 0)
    np.testing.assert_allclose(found, forward()(token_ids, mask)[rows], **TOLERANCE)


def test_the_state_of_a_row_is_that_of_its_last_document():
    token_ids, mask, documents = packed_rows()
    _, states = layers_of_rows()(token_ids, mask)
    last = {row: tokens for row, _, tokens in documents}
    for row, name in enumerate(ROWS_OF_DOCUMENTS):
        truth = read_alone(last[row])[1] if row in last else empty(1)
        assert (row in last) == (name != "only pads")
        check_states(row_of(states, row), truth.layers)


def test_rows_do_not_influence_each_other():
    token_ids, others = text(length=12, seed=7), text(length=12, seed=8)
    others[1] = token_ids[1]
    mask, other_mask = ones(token_ids), ones(token_ids)
    other_mask[0, 7:] = 0
    first, first_state = in_two_pieces(token_ids, mask)
    second, second_state = in_two_pieces(others, other_mask)
    assert np.abs(second[[0, 2]] - first[[0, 2]]).max() > 0.1
    # The same program on the same numbers, whatever stands beside them.
    np.testing.assert_allclose(second[1], first[1], rtol=1e-6, atol=1e-6)
    check_states(row_of(second_state, 1), row_of(first_state, 1), rtol=1e-6, atol=1e-6)


def in_two_pieces(token_ids, mask):
    """The hidden states of the second piece of 6 tokens, and the state."""
    _, state = step()(token_ids[:, :PIECE], mask[:, :PIECE], empty())
    return step()(token_ids[:, PIECE:], mask[:, PIECE:], state)


def test_the_state_given_is_not_changed():
    first, second = text()[:, :PIECE], text()[:, PIECE : 2 * PIECE]
    _, state = step()(first, ones(first), empty())
    state = keras.tree.map_structure(ops.convert_to_tensor, state)
    before = keras.tree.map_structure(np.copy, to_numpy(state))
    out, _ = step()(second, ones(second), state)
    check_states(to_numpy(state), before, rtol=0, atol=0)
    again, _ = step()(second, ones(second), state)
    np.testing.assert_array_equal(again, out)


half_precision = pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16", "bfloat16"])
SHORT = text()[:, : WINDOW + 4]


@functools.cache
def half_precision_model(dtype):
    """The same weights, but that the final norm's first one is next to -1.

    `1 + scale` then is 2^-13; a scale of half precision would make it zero.
    """
    model = new_backbone(dtype)
    model.set_weights(backbone().get_weights())
    scale = to_numpy(model.final_norm.scale.value)
    scale[0] = -1.0 + 2.0**-13
    model.final_norm.scale.assign(scale)
    return model


@functools.cache
def stepped(dtype):
    """Hidden states and state, as tensors."""
    model = half_precision_model(dtype)
    return program(model.step)(SHORT, ones(SHORT), model.initial_state(ROWS))


@half_precision
def test_half_precision_keeps_the_recurrence_in_float32(dtype):
    model = half_precision_model(dtype)
    hidden, state = stepped(dtype)
    assert ops.dtype(hidden) == model.compute_dtype
    assert ops.dtype(state.num_tokens) == "int32"
    for layers in (model.initial_state(ROWS).layers, state.layers):
        for record in layers:
            first = "float32" if isinstance(record, RecurrentState) else model.compute_dtype
            assert [ops.dtype(x) for x in record] == [first, model.compute_dtype]
    recurrence = state.layers[0].recurrence
    rounded = to_numpy(ops.cast(recurrence, model.compute_dtype))
    # Most numbers need the digits of float32.
    assert np.mean(to_numpy(recurrence) != rounded) > 0.5


@half_precision
def test_half_precision_is_finite_and_near_float32(dtype):
    hidden, state = to_numpy(stepped(dtype))
    assert all(np.all(np.isfinite(x)) for x in keras.tree.flatten((hidden, state)))
    truth = one_pass()[0][:, : SHORT.shape[1], 1:]
    # Eight bits through four blocks are some per cent of the spread of the hidden states.
    assert np.sqrt(np.mean((hidden[..., 1:] - truth) ** 2)) < 0.1 * truth.std()


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_steps_in_half_precision_have_the_same_weights_as_the_forward_pass(dtype):
    hidden, _ = to_numpy(stepped(dtype))
    trained = compiled(forward_of(half_precision_model(dtype)))(SHORT, ones(SHORT))
    for feature in (0, 1):
        spread = trained[..., feature].std()
        assert spread > 0.0
        # Roundings to eight bits in another order are some per cent, too.
        assert np.abs(hidden - trained)[..., feature].mean() < 0.1 * spread
