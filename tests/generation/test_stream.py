"""Streamed text is the text of `generate`, in pieces of whole characters; stop strings end it."""

import functools

import keras
import keras_hub
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import tiny
from backend_independent import backend_independent
from generation import plain
from keras_rgemma.generation.text_deltas import TextDeltas

PROMPTS = ["The quick", "A lighthouse is a tower", ""]
NEW = 10
SAMPLERS = {
    "greedy": keras_hub.samplers.GreedySampler,
    "top_k": lambda: keras_hub.samplers.TopKSampler(k=9, seed=1),
    "top_p": lambda: keras_hub.samplers.TopPSampler(p=0.9, seed=1),
    "random": lambda: keras_hub.samplers.RandomSampler(seed=1),
}


@pytest.fixture(scope="module")
def lm():
    return tiny.wordy(tiny.causal_lm(sequence_length=24))


def joined(pieces):
    return ["".join(row) for row in zip(*pieces, strict=True)]


# === Streams ===


@pytest.mark.parametrize("name", SAMPLERS)
def test_pieces_joined_are_what_generate_returns(lm, name):
    limits = {"max_new_tokens": NEW, "stop_token_ids": [1, 300, 350]}
    lm.compile(sampler=SAMPLERS[name]())
    seeds = [(variable, tiny.numpy(variable)) for variable in lm.sampler.variables]
    expected = lm.generate(PROMPTS, strip_prompt=True, **limits)
    for variable, value in seeds:
        variable.assign(value)
    pieces = list(lm.stream(PROMPTS, **limits))
    assert all(isinstance(piece, list) and any(piece) for piece in pieces)
    assert len(pieces) > 1
    assert joined(pieces) == expected


def test_the_pieces_of_one_prompt_are_strings(lm):
    lm.compile(sampler="greedy")
    pieces = list(lm.stream(PROMPTS[1], max_new_tokens=NEW))
    assert all(isinstance(piece, str) and piece for piece in pieces)
    assert len(pieces) > 1
    assert "".join(pieces) == lm.generate(PROMPTS[1], max_new_tokens=NEW, strip_prompt=True)


def test_arrays_stream_as_arrays():
    lm = plain.lively_model()
    inputs = {"token_ids": np.array([[5, 6, 7], [8, 9, 0]]), "padding_mask": [[1, 1, 1], [1, 1, 0]]}
    limits = {"max_new_tokens": 6, "stop_token_ids": None}
    expected = lm.generate(inputs, strip_prompt=True, **limits)
    pieces = list(lm.stream(inputs, **limits))
    assert [piece["token_ids"].shape for piece in pieces] == [(2, 1)] * 6
    found = np.hstack([piece["token_ids"] for piece in pieces])
    np.testing.assert_array_equal(found, expected["token_ids"][:, :6])
    assert all(piece["padding_mask"].all() for piece in pieces)


def test_closing_ends_the_work_and_leaves_the_state_of_what_was_given(lm):
    lm.compile(sampler="greedy")
    limits = {"max_new_tokens": NEW, "stop_token_ids": None}
    whole = lm.generate(PROMPTS[0], strip_prompt=True, **limits)
    length = len(lm.preprocessor.prompt_token_ids(PROMPTS[:1])[0])
    stream = lm.stream(PROMPTS[0], **limits)
    assert stream.state.num_tokens.tolist() == [length]
    given_out = next(stream) + next(stream)
    state = stream.state
    made = int(state.num_tokens[0]) - length
    assert 2 <= made < NEW
    stream.close()
    assert list(stream) == []
    assert stream.state.num_tokens.tolist() == [length + made]
    assert whole.startswith(given_out)
    rest = lm.generate("", max_new_tokens=NEW - made, state=state, stop_token_ids=None)
    assert given_out + rest == whole


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_stream_that_is_left_spends_no_seed_of_the_tokens_after(name):
    lm = plain.lively_model()
    ids = {"token_ids": np.array([[5, 6, 7], [9, 2, 4]])}
    limits = {"stop_token_ids": None}

    def left():
        stream = lm.stream(ids, max_new_tokens=8, **limits)
        return np.concatenate([next(stream)["token_ids"] for _ in range(3)], axis=1)

    def whole():
        return lm.generate(ids, max_new_tokens=3, **limits)["token_ids"][:, 3:]

    texts = []
    for begin in (left, whole):
        lm.compile(sampler=SAMPLERS[name]())
        texts.append([begin(), whole()])
    np.testing.assert_array_equal(*texts)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_row_that_is_cut_off_leaves_the_seeds_of_its_neighbours(lm, name):
    def written(read, **limits):
        lm.compile(sampler=SAMPLERS[name]())
        return read(PROMPTS, max_new_tokens=NEW, stop_token_ids=None, **limits)

    uncut = written(lambda *x, **y: lm.generate(*x, strip_prompt=True, **y))
    stop = uncut[0][1:3]  # which ends the first row, and perhaps others
    expected = [text.split(stop)[0] for text in uncut]
    assert expected[0] != uncut[0]
    streamed = joined(written(lm.stream, stop=stop))
    generated = written(lambda *x, **y: lm.generate(*x, strip_prompt=True, **y), stop=stop)
    assert streamed == generated == expected


def test_at_most_one_token_is_computed_ahead(monkeypatch):
    """On JAX the next token is computed while the caller looks at the last one."""
    lm = plain.lively_model()
    lm.compile(sampler="greedy")
    sizes = []
    programs = lm.make_generate_function()
    start = type(programs).start_block

    def counting(self, stops, rows, size):
        sizes.append(size)
        return start(self, stops, rows, size)

    monkeypatch.setattr(type(programs), "start_block", counting)
    stream = lm.stream({"token_ids": np.array([[5, 6, 7]])}, max_new_tokens=4, stop_token_ids=None)
    counts = []
    for _ in stream:
        counts.append(sum(sizes))
    is_jax = keras.config.backend() == "jax"
    assert counts == ([2, 3, 4, 4] if is_jax else [1, 2, 3, 4])


def test_samplers_that_look_ahead_say_that_they_cannot_stream(lm):
    for name, cls in (("beam", "BeamSampler"), ("contrastive", "ContrastiveSampler")):
        lm.compile(sampler=name)
        with pytest.raises(ValueError, match=f"{cls}.*cannot be streamed.*`generate`"):
            lm.stream("The")


def test_bad_input_is_refused_when_the_stream_is_made(lm):
    lm.compile(sampler="greedy")
    with pytest.raises(ValueError, match="at least one prompt"):
        lm.stream([])
    with pytest.raises(ValueError, match="max_length"):
        lm.stream("A lighthouse is a tower", max_length=2)
    with pytest.raises(ValueError, match="`stop` must be"):
        lm.stream("The", stop=[""])
    for stop in (["a", 3], 7, [None]):
        with pytest.raises((ValueError, TypeError), match=r"stop|iterable"):
            lm.generate("The", stop=stop)
    with pytest.raises(ValueError, match="needs a preprocessor"):
        plain.lively_model().generate(
            {"token_ids": [[5]]}, max_new_tokens=1, stop_token_ids=None, stop="a"
        )
    with pytest.raises(ValueError, match="num_return_sequences"):
        lm.generate("The", num_return_sequences=0)
    assert isinstance(lm.generate("The", max_new_tokens=1), str)


# === Stop strings ===


@pytest.mark.parametrize("sampler", ["greedy", "beam"])
def test_stop_strings_end_each_row_where_they_stand(lm, sampler):
    lm.compile(sampler=sampler)
    limits = {"max_new_tokens": NEW, "stop_token_ids": None}
    whole = lm.generate(PROMPTS, strip_prompt=True, **limits)
    # In the middle of the first row's text, wherever tokens end.
    places = [i for i in range(3, len(whole[0]) - 3) if whole[0].find(whole[0][i : i + 3]) == i]
    stop = [whole[0][places[0] : places[0] + 3], "no such text"]
    expected = [min((text.split(s)[0] for s in stop), key=len) for text in whole]
    assert 0 < len(expected[0]) < len(whole[0])
    assert lm.generate(PROMPTS, strip_prompt=True, stop=stop, **limits) == expected
    full = [prompt + text for prompt, text in zip(PROMPTS, expected, strict=True)]
    found, state = lm.generate(PROMPTS, stop=stop, return_state=True, **limits)
    assert found == full
    assert lm.generate(PROMPTS[0], stop=stop[0], **limits) == full[0]
    if sampler == "greedy":
        assert joined(list(lm.stream(PROMPTS, stop=stop, **limits))) == expected
    # The state has the tokens up to the one that completes the stop string, and no more.
    ids = lm.generate(
        {"token_ids": [lm.preprocessor.prompt_token_ids(PROMPTS[:1])[0]]}, stop=stop[:1], **limits
    )
    kept = ids["token_ids"][0][ids["padding_mask"][0]]
    if sampler == "greedy":
        prompt = {"token_ids": [lm.preprocessor.prompt_token_ids(PROMPTS[:1])[0]]}
        pieces = list(lm.stream(prompt, stop=stop[:1], **limits))
        assert [piece["token_ids"][0, 0] for piece in pieces] == kept[-len(pieces) :].tolist()
        assert len(prompt["token_ids"][0]) + len(pieces) == len(kept)
    assert state.num_tokens[0] == len(kept)
    text = lm.preprocessor.text_of([kept, kept[:-1]])
    assert stop[0] in text[0] and stop[0] not in text[1][len(PROMPTS[0]) :]
    expected = lm.prefill({"token_ids": kept[None]})
    for one, other in zip(tiny_arrays(state[0]), tiny_arrays(expected), strict=True):
        # The weights that let it write words multiply errors of rounding, too: see plain.py.
        np.testing.assert_allclose(one, other, 0, 1e-4)


def tiny_arrays(state):
    return [tiny.numpy(array) for array in keras.tree.flatten(state)]


# === Pieces of text ===


preprocessor = functools.cache(tiny.preprocessor)


def decode(ids):
    return preprocessor().text_of([ids])[0]


def pieces_of(ids, stop=()):
    """The pieces of a text, and how many of its tokens were taken."""
    text, pieces, taken = TextDeltas(decode, stop), [], 0
    while taken < len(ids) and not text.stopped:
        piece, count = text.extend(ids[taken : taken + 2])
        pieces.append(piece)
        taken += count
    return [*pieces, text.rest()], taken


@backend_independent
@given(st.lists(st.integers(0, 399), max_size=30))
@example([4, 5, 260, 260, 200, 300])
def test_pieces_of_any_tokens_are_their_text(ids):
    pieces, taken = pieces_of(ids)
    assert "".join(pieces) == decode(ids)
    assert taken == len(ids)


@backend_independent
@given(st.text(min_size=1, max_size=20))
@example("naïve 日本語 🙂🙃 👩‍👩‍👧")
def test_characters_of_several_tokens_come_whole(text):
    ids = list(preprocessor().tokenizer(text))
    pieces, _ = pieces_of(ids)
    assert "".join(pieces) == text
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


@backend_independent
@given(
    st.text("ab é🙂", max_size=20),
    st.lists(st.text("ab é🙂", min_size=1, max_size=4), min_size=1, max_size=3),
)
@example("aab", ["ab"])
@example("aaba", ["aab", "ba"])
@example("a  ", [" ", "a  "])
def test_text_ends_before_the_first_stop_string(text, stop):
    ids = list(preprocessor().tokenizer(text))
    pieces, taken = pieces_of(ids, stop)
    # The token that completes a stop string ends the text, where that string begins.
    ends = [n for n in range(len(ids) + 1) if any(s in decode(ids[:n]) for s in stop)]
    assert taken == (ends[0] if ends else len(ids))
    seen = decode(ids[:taken])
    assert "".join(pieces) == min((seen.split(s)[0] for s in stop), key=len)
    # What is out before the end never has to be taken back.
    so_far = ""
    for piece in pieces[:-1]:
        so_far += piece
        assert not any(s in so_far for s in stop)
