"""The tree of shared beginnings has every row once, with its own tokens on the way."""

import keras
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_rgemma.evaluation.prefixes import shared_beginnings

pytestmark = pytest.mark.skipif(keras.config.backend() != "torch", reason="no backend is used")
ROWS = st.lists(st.lists(st.integers(0, 1), max_size=12), max_size=12)


def ways(branch, before=()):
    """Pairs of the index of a row and the tokens on the way to it."""
    before = (*before, *branch.tokens)
    yield from ((index, before) for index in branch.leaves)
    for child in branch.branches:
        yield from ways(child, before)


@given(ROWS, st.integers(1, 4))
def test_each_row_is_found_once_behind_its_beginning(rows, shortest):
    tree = shared_beginnings(rows, shortest)
    found = list(ways(tree))
    assert sorted(index for index, _ in found) == list(range(len(rows)))
    assert sorted(tree.rows()) == list(range(len(rows)))
    for index, tokens in found:
        assert tuple(rows[index][: len(tokens)]) == tokens


@given(ROWS, st.integers(1, 4))
def test_what_two_rows_share_is_read_once(rows, shortest):
    found = dict(ways(shared_beginnings(rows, shortest)))
    for i, one in enumerate(rows):
        for j, other in enumerate(rows[:i]):
            pairs = enumerate(zip(one, other, strict=False))
            shared = next((k for k, (x, y) in pairs if x != y), min(len(one), len(other)))
            common = zip(found[i], found[j], strict=False)
            on_the_way = next(
                (k for k, (x, y) in enumerate(common) if x != y), min(len(found[i]), len(found[j]))
            )
            assert shared - on_the_way < shortest


def test_rows_of_a_task():
    tree = shared_beginnings([[1, 2, 3], [1, 2, 4], [5], [1, 2, 3]], shortest=2)
    assert tree.leaves == [2] and [branch.tokens for branch in tree.branches] == [[1, 2]]
