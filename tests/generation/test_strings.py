"""Prompts in every form that users have them in, and the text that comes back."""

import numpy as np
import pytest
import tensorflow as tf

import tiny

PROMPTS = ["The quick", "A lighthouse is a tower", ""]


@pytest.fixture(scope="module")
def lm():
    return tiny.randomize(tiny.causal_lm(sequence_length=24))


@pytest.fixture(scope="module")
def texts(lm):
    return [lm.generate(prompt, max_new_tokens=6) for prompt in PROMPTS]


def test_text_continues_its_prompt(lm, texts):
    for prompt, text in zip(PROMPTS, texts, strict=True):
        assert isinstance(text, str)
        assert text.startswith(prompt)
        assert len(text) > len(prompt)


@pytest.mark.parametrize(
    "form",
    [
        list,
        tuple,
        np.array,
        tf.constant,
        lambda prompts: tf.data.Dataset.from_tensor_slices(prompts).batch(2),
        lambda prompts: tf.data.Dataset.from_tensor_slices(prompts),
    ],
)
def test_every_form_of_prompts_gives_the_same_list(lm, texts, form):
    assert lm.generate(form(PROMPTS), max_new_tokens=6) == texts


def test_strip_prompt_leaves_the_new_text(lm, texts):
    new = lm.generate(PROMPTS, max_new_tokens=6, strip_prompt=True)
    assert [prompt + text for prompt, text in zip(PROMPTS, new, strict=True)] == texts
    assert lm.generate(PROMPTS[0], max_new_tokens=6, strip_prompt=True) == new[0]


def test_the_end_of_a_turn_is_left_out_only_where_it_ends_the_text(lm):
    end = lm.preprocessor.tokenizer.end_token2_id
    text = lm.preprocessor.text_of([[300]])[0]
    for stops, expected in (("auto", text), (None, text + "<end_of_turn>")):
        writer = type(lm)(lm.backbone, lm.preprocessor)
        writer.compile(sampler=tiny.Scripted([[300, end]]))
        limits = {"max_new_tokens": 2, "stop_token_ids": stops}
        assert writer.generate("The", strip_prompt=True, **limits) == expected


def test_ids_beyond_the_tokenizer_stand_for_no_text(lm):
    assert lm.preprocessor.text_of([[300, 4000]]) == lm.preprocessor.text_of([[300]])


def test_arrays_give_arrays_with_prompt_and_new_tokens(lm, texts):
    rows = lm.preprocessor.prompt_token_ids(PROMPTS)
    width = max(len(row) for row in rows)
    ids = np.array([[0] * (width - len(row)) + list(row) for row in rows])
    out = lm.generate({"token_ids": ids, "padding_mask": ids > 0}, max_new_tokens=6)
    assert out["token_ids"].shape == out["padding_mask"].shape
    kept = [row[mask] for row, mask in zip(out["token_ids"], out["padding_mask"], strict=True)]
    for prompt, row in zip(rows, kept, strict=True):
        assert row[: len(prompt)].tolist() == prompt.tolist()
    assert lm.preprocessor.text_of(kept) == texts


def test_arrays_without_a_limit_fill_their_width(lm):
    prompt = lm.preprocessor.prompt_token_ids(["The quick"])[0]
    ids = np.zeros((1, 20), "int32")
    ids[0, : len(prompt)] = prompt
    out = lm.generate({"token_ids": ids, "padding_mask": ids > 0}, stop_token_ids=None)
    assert out["token_ids"].shape == (1, 20)
    assert out["padding_mask"].all()


def count_new(lm, prompt, **limits):
    """How many tokens a prompt gets, nothing stopping it early."""
    length = len(lm.preprocessor.prompt_token_ids([prompt])[0])
    _, state = lm.generate(prompt, stop_token_ids=None, return_state=True, **limits)
    return int(state.num_tokens[0]) - length, length


def test_max_length_counts_the_prompt_and_max_new_tokens_does_not(lm):
    new, length = count_new(lm, "The quick", max_length=20)
    assert new + length == 20
    assert count_new(lm, "The quick", max_new_tokens=3)[0] == 3


def test_without_a_limit_sequence_length_bounds_the_text_or_the_answer(lm):
    new, length = count_new(lm, "The quick")
    assert new + length == lm.preprocessor.sequence_length
    new, length = count_new(lm, "A lighthouse is a tower. " * 3)
    assert length > lm.preprocessor.sequence_length
    assert new == lm.preprocessor.sequence_length


def test_the_token_that_ends_an_answer_is_no_part_of_its_text(lm):
    tokenizer = lm.preprocessor.tokenizer
    word = tokenizer.tokenize(" fox")
    rows = [[*word, end, *word] for end in (tokenizer.end_token_id, tokenizer.end_token2_id)]
    question = "<start_of_turn>user\nWhat?<end_of_turn>\n<start_of_turn>model\n"
    for strip_prompt, expected in ((False, question + " fox"), (True, " fox")):
        writer = type(lm)(lm.backbone, lm.preprocessor)
        writer.compile(sampler=tiny.Scripted(rows))
        texts = writer.generate([question] * 2, max_length=200, strip_prompt=strip_prompt)
        assert texts == [expected] * 2
