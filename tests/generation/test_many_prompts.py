"""Any number of prompts in a few rows: each gets the text that it gets alone."""

import keras_hub
import numpy as np
import pytest
import tensorflow as tf

import tiny

COUNT = 9
PROMPTS = [tiny.SENTENCES[i % 9][: 3 + 7 * (i % 5)] for i in range(COUNT)]
IDS = np.random.RandomState(0).randint(4, 400, (COUNT, 6)).astype("int32")
MASK = np.arange(6) < np.array([6, 1, 3, 6, 2, 4, 5, 6, 1])[:, None]


@pytest.fixture(scope="module")
def lm():
    """A model whose texts end at many lengths."""
    return tiny.wordy(tiny.causal_lm(sequence_length=40))


def stops(lm):
    """Tokens that the model writes often, so that rows end early."""
    ids = lm.generate({"token_ids": IDS[:1]}, max_new_tokens=12, stop_token_ids=None)["token_ids"]
    return tuple(int(id) for id in ids[0, -4:])


def alone(lm, prompts, **kwargs):
    return [lm.generate(prompt, **kwargs) for prompt in prompts]


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize(
    "kwargs",
    [
        {},  # the budget of each is what its prompt leaves of `sequence_length`
        {"max_new_tokens": 11, "stop_token_ids": "often"},
        {"max_new_tokens": 20, "stop": ["e", "st"], "strip_prompt": True},
        {"max_new_tokens": 0},
        {"max_length": 41, "stop_token_ids": None},
    ],
    ids=["auto", "stop tokens", "stop strings", "nothing", "max_length"],
)
def test_texts_are_those_of_each_prompt_alone(lm, batch_size, kwargs):
    if kwargs.get("stop_token_ids") == "often":
        kwargs = {**kwargs, "stop_token_ids": stops(lm)}
    expected = alone(lm, PROMPTS, **kwargs)
    assert lm.generate(iter(PROMPTS), batch_size=batch_size, **kwargs) == expected


def test_arrays_are_those_of_one_batch(lm):
    inputs = {"token_ids": IDS * MASK, "padding_mask": MASK}
    kwargs = {"max_new_tokens": 9, "stop_token_ids": stops(lm)}
    expected = lm.generate(inputs, **kwargs)
    found = lm.generate(inputs, batch_size=2, **kwargs)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])


def test_a_state_of_one_row_begins_every_prompt(lm):
    state = lm.prefill("The quick brown fox")
    kwargs = {"max_new_tokens": 7, "state": state}
    expected = alone(lm, PROMPTS, **kwargs)
    assert lm.generate(PROMPTS, batch_size=4, **kwargs) == expected
    # The state has not changed.
    assert lm.generate(PROMPTS[0], **kwargs) == expected[0]
    for rows in (2, 9):
        with pytest.raises(ValueError, match=rf"one row.*{rows} rows"):
            lm.generate(PROMPTS, batch_size=4, state=state.repeat(rows))


def test_messages_are_answered_each(lm):
    messages = [[{"role": "user", "content": prompt}] for prompt in PROMPTS[:5]]
    expected = alone(lm, messages, max_new_tokens=6)
    assert lm.generate(messages, batch_size=2, max_new_tokens=6) == expected
    _, state = lm.generate(messages[0], max_new_tokens=6, return_state=True)
    expected = alone(lm, messages, max_new_tokens=6, state=state)
    assert lm.generate(messages, batch_size=2, max_new_tokens=6, state=state) == expected


def test_several_continuations_of_each(lm):
    expected = lm.generate(PROMPTS[:3], max_new_tokens=5, num_return_sequences=2)
    kwargs = {"max_new_tokens": 5, "num_return_sequences": 2, "batch_size": 4}
    assert lm.generate(PROMPTS[:3], **kwargs) == expected


def test_batches_of_a_dataset_are_joined(lm):
    expected = lm.generate(PROMPTS, max_new_tokens=5)
    dataset = tf.data.Dataset.from_tensor_slices(PROMPTS).batch(2)
    assert lm.generate(dataset, max_new_tokens=5, batch_size=4) == expected
    arrays = {"token_ids": IDS}
    dataset = tf.data.Dataset.from_tensor_slices(arrays).batch(2)
    found = lm.generate(dataset, max_new_tokens=5, batch_size=4, stop_token_ids=None)
    expected = lm.generate(arrays, max_new_tokens=5, stop_token_ids=None)
    np.testing.assert_array_equal(found["token_ids"], expected["token_ids"])


@pytest.mark.parametrize("wanted", ["one", "list"])
def test_a_single_prompt(lm, wanted):
    prompt = PROMPTS[0] if wanted == "one" else PROMPTS[:1]
    expected = lm.generate(prompt, max_new_tokens=5)
    assert lm.generate(prompt, max_new_tokens=5, batch_size=8) == expected


def test_a_sampler_with_a_loop_of_its_own_takes_batches_in_turn(lm):
    lm.compile(sampler=keras_hub.samplers.BeamSampler(num_beams=2))
    expected = alone(lm, PROMPTS[:3], max_new_tokens=4)
    assert lm.generate(PROMPTS[:3], max_new_tokens=4, batch_size=2) == expected
    state = lm.prefill("The quick")
    expected = alone(lm, PROMPTS[:3], max_new_tokens=4, state=state)
    assert lm.generate(PROMPTS[:3], max_new_tokens=4, batch_size=2, state=state) == expected
    lm.compile(sampler="greedy")


def test_random_samplers_write_in_every_row(lm):
    lm.compile(sampler=keras_hub.samplers.TopKSampler(k=20, seed=3))
    texts = lm.generate(PROMPTS, max_new_tokens=6, stop_token_ids=None, batch_size=3)
    lm.compile(sampler="greedy")
    assert all(text.startswith(prompt) for text, prompt in zip(texts, PROMPTS, strict=True))
    assert texts != lm.generate(PROMPTS, max_new_tokens=6, stop_token_ids=None, batch_size=3)


def test_rows_stay_busy(lm, monkeypatch):
    """As few steps as these budgets allow: no row waits for the longest of its neighbours."""
    programs = lm.make_generate_function()
    sizes = []
    run_block = type(programs).run_block

    def counting(self, stops, rows, size):
        sizes.append(size)
        return run_block(self, stops, rows, size)

    monkeypatch.setattr(type(programs), "run_block", counting)
    token_ids = [[2, *[300] * length] for length in range(1, 13)]
    width = max(map(len, token_ids))
    ids = np.array([row + [0] * (width - len(row)) for row in token_ids])
    inputs = {"token_ids": ids, "padding_mask": ids > 0}
    lm.generate(inputs, max_length=20, stop_token_ids=None, batch_size=4)
    budgets = sorted(20 - len(row) for row in token_ids)
    at_least, in_turn = -(-sum(budgets) // 4), sum(budgets[3::4])
    assert sum(sizes) < at_least + 0.2 * (in_turn - at_least) + 2


def test_what_does_not_go_together_is_refused(lm):
    with pytest.raises(ValueError, match=r"`return_state=True`.*`batch_size`"):
        lm.generate(PROMPTS, batch_size=2, return_state=True)
    for size in (0, -1, 2.5, True):
        with pytest.raises((ValueError, TypeError), match="batch_size"):
            lm.generate(PROMPTS, batch_size=size)
    with pytest.raises(ValueError, match="at least one prompt"):
        lm.generate([], batch_size=2)
    with pytest.raises(ValueError, match="prompt 8, which has"):
        lm.generate([*["a"] * 8, "The quick brown fox jumps"], batch_size=2, max_length=4)


def test_an_interrupted_call_leaves_the_model_as_it_was(lm, monkeypatch):
    expected = lm.generate(PROMPTS, max_new_tokens=5)
    programs = lm.make_generate_function()
    run_block = type(programs).run_block
    calls = []

    def interrupted(self, *args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run_block(self, *args)

    monkeypatch.setattr(type(programs), "run_block", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lm.generate(PROMPTS, max_new_tokens=5, batch_size=2)
    assert lm.generate(PROMPTS, max_new_tokens=5, batch_size=2) == expected
