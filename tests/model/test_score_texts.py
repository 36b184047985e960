"""`score` tokenizes texts as `generate` does, and scores each token from those before it."""

import keras
import numpy as np
import pytest

import tiny

TEXTS = ["A lighthouse is a tower", "The quick", ""]


@pytest.fixture(scope="module")
def lm():
    keras.utils.set_random_seed(0)
    return tiny.randomize(tiny.causal_lm())


def rows_of(lm, texts, continued=False):
    """The tokens of texts, a padding mask, and the next tokens; explicitly."""
    rows = lm.preprocessor.prompt_token_ids(texts, continued)
    ids = np.zeros((len(rows), max(map(len, rows))), "int32")
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    mask = np.array([[t < len(row) for t in range(ids.shape[1])] for row in rows])
    return ids, mask


def test_logits_of_texts_are_those_of_their_tokens(lm):
    ids, mask = rows_of(lm, TEXTS)
    found, expected = tiny.numpy(lm.score(TEXTS)), tiny.numpy(lm.score(ids, mask))
    assert found.shape == (*ids.shape, 400)
    np.testing.assert_array_equal(found[mask], expected[mask])


def test_losses_of_texts_are_those_of_each_next_token(lm):
    ids, mask = rows_of(lm, TEXTS)
    targets = np.roll(ids, -1, axis=1)
    expected = tiny.numpy(lm.score(ids, mask, scoring_mode="loss", target_ids=targets))
    has_next = np.pad(mask[:, 1:], [(0, 0), (0, 1)])
    found = tiny.numpy(lm.score(TEXTS, scoring_mode="loss"))
    np.testing.assert_array_equal(found, np.where(has_next, expected, 0))
    assert (found[has_next] > 0).all()
    alone = tiny.numpy(lm.score(TEXTS[1], scoring_mode="loss"))
    assert alone.shape == (1, len(lm.preprocessor.prompt_token_ids(TEXTS[1:2])[0]))
    # Another length is another program, which may sum in another order.
    np.testing.assert_allclose(alone[0], found[1, : alone.shape[1]], atol=1e-5)


def test_a_text_after_a_state_is_scored_from_its_first_token(lm):
    """The sum is the loss of the text, as in one row with what the state has read."""
    start, ends = "In the beginning", [" was the word", " the"]
    state = lm.prefill([start, start])
    found = tiny.numpy(lm.score(ends, scoring_mode="loss", state=state))
    before = lm.preprocessor.prompt_token_ids([start])[0]
    after, _ = rows_of(lm, ends, continued=True)
    assert found.shape == (2, after.shape[1] + 1)
    for row, end in enumerate(lm.preprocessor.prompt_token_ids(ends, continued=True)):
        ids = np.array([[*before, *end]])
        targets = np.roll(ids, -1, axis=1)
        whole = tiny.numpy(lm.score(ids, scoring_mode="loss", target_ids=targets))[0]
        expected = whole[len(before) - 1 : -1]
        assert len(expected) == len(end)
        # float32, the text read in two parts.
        np.testing.assert_allclose(found[row, : len(end)], expected, atol=1e-5)
        assert (found[row, len(end) :] == 0).all()
    logits = tiny.numpy(lm.score(["", ""], state=state))
    assert logits.shape == (2, 1, 400)
    whole = tiny.numpy(lm.score(before[None]))
    np.testing.assert_allclose(logits[0, 0], whole[0, -1], atol=1e-5)


def test_the_intercept_sees_the_layers_of_texts(lm):
    seen = []
    found = lm.score(TEXTS, layer_intercept_fn=lambda x, i: seen.append((i, x.shape[:2])) or x)
    assert [index for index, _ in seen] == [-1, 0, 1]
    np.testing.assert_allclose(tiny.numpy(found), tiny.numpy(lm.score(TEXTS)), atol=1e-5)


def test_what_belongs_to_token_ids_is_refused_with_texts(lm):
    with pytest.raises(ValueError, match=r"go with token ids.*'The'"):
        lm.score("The", padding_mask=[[1]])
    with pytest.raises(ValueError, match="go with token ids"):
        lm.score(["The"], scoring_mode="loss", target_ids=[[1]])
    with pytest.raises(ValueError, match="holds 2 rows"):
        lm.score(["The"], state=lm.prefill(["a", "b"]))
    with pytest.raises(ValueError, match="needs `target_ids`"):
        lm.score([[2, 300]], scoring_mode="loss")
