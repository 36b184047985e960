"""Positions in documents are what a plain loop over the mask says."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from compiled import compiled
from keras_rgemma.ops.documents import continued_positions, document_positions, last_token

# Few shapes, as each compiles anew on JAX.
SHAPES = ((1, 1), (3, 16))

positions_of = compiled(document_positions)
last_token_of = compiled(last_token)
continue_positions = compiled(continued_positions)


def masks(values):
    """Masks of a few shapes with runs of equal values."""

    def of_shape(shape):
        batch, length = shape
        cells = st.lists(st.sampled_from(values), min_size=length, max_size=length)
        return st.lists(cells, min_size=batch, max_size=batch).map(np.array)

    return st.sampled_from(SHAPES).flatmap(of_shape)


def positions_by_loop(mask):
    positions = np.full(mask.shape, -1)
    for row in range(mask.shape[0]):
        for t in range(mask.shape[1]):
            if mask[row, t] == 0:
                continue
            goes_on = t > 0 and mask[row, t] == mask[row, t - 1]
            positions[row, t] = positions[row, t - 1] + 1 if goes_on else 0
    return positions


def check(result, truth):
    assert result.dtype == np.int32
    np.testing.assert_array_equal(result, truth)


@given(masks([0, 1, 1, 1, 2, 2, 7]))
@example(np.zeros((3, 16), int))
def test_positions_count_from_the_first_token_of_each_document(mask):
    check(positions_of(mask.astype("int32")), positions_by_loop(mask))


def test_equal_numbers_apart_are_two_documents():
    mask = np.array([[0, 1, 1, 2, 2, 2, 0], [3, 3, 0, 3, 3, 1, 1]])
    truth = [[-1, 0, 1, 0, 1, 2, -1], [0, 1, -1, 0, 1, 0, 1]]
    for dtype in ("int32", "uint8"):
        check(positions_of(mask.astype(dtype)), truth)


@given(masks([False, True, True]))
def test_a_mask_of_booleans_says_the_same(mask):
    check(positions_of(mask), positions_by_loop(mask))


def test_a_packed_row_is_as_long_as_it_gets():
    """Long enough that sums of counts in a narrow dtype would overflow."""
    mask = np.repeat([[1, 2, 0, 3]], [700, 1, 299, 40_000], axis=1)
    check(positions_of(mask.astype("int32")), positions_by_loop(mask))


@given(masks([0, 1, 1, 1, 2, 2]))
@example(np.zeros((3, 16), int))
def test_the_last_token_ends_the_last_document(mask):
    positions = positions_by_loop(mask)
    index, length = last_token_of(positions.astype("int32"))
    tokens = [np.flatnonzero(row > 0) for row in mask]
    check(index, [t[-1] if len(t) else -1 for t in tokens])
    truth = [row[t[-1]] + 1 if len(t) else 0 for row, t in zip(positions, tokens, strict=True)]
    check(length, truth)


@given(st.lists(st.integers(0, 2**31 - 20), min_size=3, max_size=3), st.integers(0, 16))
def test_continued_positions_go_on_from_the_tokens_before(num_tokens, pads):
    mask = np.ones((3, 16), "int32")
    mask[1, 16 - pads :] = 0
    truth = np.array(num_tokens)[:, None] + np.arange(16)
    truth[mask == 0] = -1
    for dtype in ("int32", "bool"):
        check(continue_positions(mask.astype(dtype), np.array(num_tokens, "int32")), truth)


@pytest.mark.parametrize("pads", [0, 1, 5])
def test_whole_documents_continue_from_nothing(pads):
    mask = np.ones((1, 7), "int32")
    mask[:, 7 - pads :] = 0
    check(continue_positions(mask, np.zeros(1, "int32")), positions_of(mask))
