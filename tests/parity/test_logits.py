"""The float32 logits are DeepMind's: at every token, in every kind of row, from every state."""

import numpy as np
import pytest

from compiled import compiled
from keras_rgemma.config import ATTENTION, RECURRENT
from parity import deepmind
from parity.random_models import logits_program, random_lm, random_rows, with_weights_of

# Both round each product to float32 (6e-8) and add up a hundred or so in different orders, through
# a few layers: 5e-6 is the most that was measured.
TOLERANCE = 2e-5

VOCABULARY = 37

# Widths are unlike each other, so that an axis taken for another fails.
GRIFFIN = {
    "num_layers": 3,
    "hidden_dim": 24,
    "intermediate_dim": 40,
    "num_query_heads": 2,
    "lru_dim": 32,
    "sliding_window_size": 6,
}
CASES = {
    # name: (length, arguments)
    "griffin": (19, GRIFFIN),
    "four heads, no cap": (
        29,
        {
            "num_layers": 3,
            "hidden_dim": 32,
            "intermediate_dim": 20,
            "num_query_heads": 4,
            "lru_dim": 24,
            "sliding_window_size": 9,
            "final_logit_soft_cap": None,
        },
    ),
    "one head, embeddings as they are": (
        23,
        {
            "num_layers": 2,
            "hidden_dim": 16,
            "intermediate_dim": 24,
            "num_query_heads": 1,
            "lru_dim": 20,
            "block_types": (ATTENTION, RECURRENT),
            "sliding_window_size": 7,
            "scale_embeddings": False,
        },
    ),
    "attention only, neither cap nor scale": (
        21,
        {
            "num_layers": 2,
            "hidden_dim": 40,
            "intermediate_dim": 28,
            "num_query_heads": 5,
            "block_types": (ATTENTION,),
            "sliding_window_size": 5,
            "final_logit_soft_cap": None,
            "scale_embeddings": False,
        },
    ),
    "recurrent only, a cap that bites": (
        37,
        {
            "num_layers": 2,
            "hidden_dim": 24,
            "intermediate_dim": 36,
            "num_query_heads": 3,
            "lru_dim": 18,
            "block_types": (RECURRENT,),
            "final_logit_soft_cap": 2.0,
        },
    ),
    "a window of one": (
        13,
        {
            "num_layers": 2,
            "hidden_dim": 16,
            "intermediate_dim": 12,
            "num_query_heads": 2,
            "lru_dim": 28,
            "block_types": (RECURRENT, ATTENTION),
            "sliding_window_size": 1,
        },
    ),
    # Texts of more than one block of 256 queries: the window reaches back over two blocks, ...
    "long": (
        590,
        {
            "num_layers": 2,
            "hidden_dim": 16,
            "intermediate_dim": 20,
            "num_query_heads": 2,
            "lru_dim": 12,
            "block_types": (RECURRENT, ATTENTION),
            "sliding_window_size": 290,
        },
    ),
    # ... is wider than the text, ...
    "long, in a window that is never full": (
        300,
        {
            "num_layers": 1,
            "hidden_dim": 16,
            "intermediate_dim": 20,
            "num_query_heads": 4,
            "block_types": (ATTENTION,),
            "sliding_window_size": 700,
        },
    ),
    # ... or is so narrow that a block has 64 queries.
    "long, in a narrow window": (
        270,
        {
            "num_layers": 1,
            "hidden_dim": 24,
            "intermediate_dim": 20,
            "num_query_heads": 3,
            "block_types": (ATTENTION,),
            "sliding_window_size": 33,
        },
    ),
}


def error(ours, theirs, tokens):
    """The largest difference at the chosen tokens, relative to logits greater than 1."""
    differences = np.abs(ours - theirs) / np.maximum(1.0, np.abs(theirs))
    return differences[tokens].max()


@pytest.mark.parametrize("name", CASES)
def test_logits_are_deepminds_at_every_token(name):
    length, config = CASES[name]
    lm = random_lm(seed=length, vocabulary_size=VOCABULARY, **config)
    token_ids, mask = random_rows(length, length, VOCABULARY)
    ours = logits_program(lm)(token_ids, mask)
    assert np.isfinite(ours).all()  # at pads, too
    theirs = deepmind.logits(lm.backbone, token_ids, mask)
    assert error(ours, theirs, mask > 0) <= TOLERANCE
    window = lm.backbone.sliding_window_size
    if ATTENTION in lm.backbone.config.layer_types and window + 1 < length:
        plain_row, edge = 0, [window - 1, window, window + 1]
        assert error(ours, theirs, (plain_row, edge)) <= TOLERANCE


@pytest.mark.parametrize("change, first_to_differ", ((-1, 0), (1, 1)))
def test_a_token_sees_exactly_the_window_and_itself(change, first_to_differ):
    # A window smaller by one first lacks a key at position W, one larger by one first shows a key
    # too many at W + 1. So a model of W keys (as in transformers) could not pass for this one.
    length, config = CASES["attention only, neither cap nor scale"]
    window = config["sliding_window_size"]
    lm = random_lm(seed=3, vocabulary_size=VOCABULARY, **{**config, "num_layers": 1})
    token_ids, mask = random_rows(3, length, VOCABULARY)
    theirs = deepmind.logits(lm.backbone, token_ids, mask)
    ours = logits_program(with_weights_of(lm, sliding_window_size=window + change))(token_ids, mask)
    plain_row, position = 0, window + first_to_differ
    assert error(ours, theirs, (plain_row, slice(position))) <= TOLERANCE
    assert error(ours, theirs, (plain_row, position)) > 100 * TOLERANCE


def test_pieces_of_a_text_give_the_logits_of_the_whole():
    length, config = CASES["griffin"]
    config = {**config, "num_layers": 2, "block_types": (RECURRENT, ATTENTION)}
    lm = random_lm(seed=2, vocabulary_size=VOCABULARY, **config)
    token_ids, _ = random_rows(2, length, VOCABULARY)
    theirs = deepmind.logits(lm.backbone, token_ids, np.ones_like(token_ids))

    @compiled
    def step(piece, mask, state):
        hidden, state = lm.step(piece, mask, state)
        return lm.compute_logits(hidden), state

    # Prompts of 2 to 7 tokens (the convolution reaches back 3); then a piece that takes some rows
    # over the window's edge, and is nothing but pads for one; then single tokens.
    counts = [[7, 5, 2, 6], [4, 0, 3, 1]] + [[1, 1, 1, 1]] * 6
    consumed = np.zeros(4, "int32")
    state = lm.initial_state(batch_size=4)
    for width, count in zip([7, 4, 1, 1, 1, 1, 1, 1], np.array(counts, "int32"), strict=True):
        column = np.arange(width)[None]
        mask = (column < count[:, None]).astype("int32")
        at = np.minimum(consumed[:, None] + column, length - 1)
        ours, state = step(np.take_along_axis(token_ids, at, axis=1), mask, state)
        assert np.isfinite(ours).all()
        expected = np.take_along_axis(theirs, at[:, :, None], axis=1)
        assert error(ours, expected, mask > 0) <= TOLERANCE
        consumed = consumed + count
    assert (state.num_tokens == consumed).all()
    assert consumed.max() > 2 * config["sliding_window_size"]  # the ring went round twice
