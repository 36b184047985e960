"""However long a text is, its state has one size, takes bounded room to make, and is exact."""

import numpy as np
import pytest
from keras import ops

from generation import plain
from keras_rgemma.generation.programs import GenerationPrograms
from laws.long_text import distance

W = plain.WINDOW


@pytest.mark.parametrize("length", [1, 2, W, W + 1, 3 * W])
def test_the_reference_is_the_model(length):
    lm = plain.lively_model()
    ids = np.random.RandomState(0).randint(1, 61, length + W)
    # As in parity/test_logits.py.
    assert distance(lm, lm.prefill(ids[:length]), ids[length:]) <= 2e-5


def test_positions_are_exact_beyond_a_million_tokens():
    lm = plain.lively_model()
    ids = np.random.RandomState(0).randint(1, 61, 3 * W)
    for start in (10**6, 2**30):
        state = lm.prefill(ids[:1])
        later = state.consumed._replace(num_tokens=ops.full_like(state.consumed.num_tokens, start))
        state = type(state)(state.last_token_ids, later, state.fingerprint)
        # The ring is full of zeros now, as far as positions tell; both see the same.
        assert distance(lm, state, ids) <= 2e-5


def test_reading_takes_no_more_room_for_a_longer_text(monkeypatch):
    """What one step is given and returns is all that grows, and it does not."""
    lm = plain.lively_model()
    made, sizes, compiled = [], [], GenerationPrograms.compiled

    def measured(programs, function):
        def run(*args):
            sizes.append([tuple(array.shape) for array in args[:2]])
            return compiled(programs, function)(*args)

        return run

    monkeypatch.setattr(GenerationPrograms, "compiled", measured)

    def pieces():
        for start in range(0, 3000, 7):
            made.append(start)
            # No piece is asked for before what came is nearly all read.
            assert start - 16 * len(sizes) <= 16 + 7
            yield np.arange(start, min(start + 7, 3000)) % 60 + 1

    state = lm.prefill(pieces(), chunk_size=16)
    assert state.num_tokens.tolist() == [3000]
    assert {shape for shapes in sizes for shape in shapes} == {(1, 16)}
    assert len(made) == -(-3000 // 7)
    assert state.nbytes == lm.prefill([5]).nbytes
