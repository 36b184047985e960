"""How many new tokens a prompt gets where the caller names no limit."""

import warnings

import keras
import pytest

import tiny

LENGTH = 12
TEXT = "A lighthouse is a tower that shows ships the way at night. " * 2


@pytest.fixture(scope="module")
def lm():
    keras.utils.set_random_seed(0)
    return tiny.randomize(tiny.causal_lm(sequence_length=LENGTH))


def prompt_of(lm, length):
    """A text of some number of tokens."""
    tokenizer = lm.preprocessor.tokenizer
    prompts = (TEXT[:size] for size in range(len(TEXT)))
    return next(text for text in prompts if len(tokenizer(text) if text else []) == length - 1)


def count_new(lm, prompts):
    """The number of new tokens of each prompt, of `generate` and of `stream`."""
    lengths = [len(row) for row in lm.preprocessor.prompt_token_ids(prompts)]
    _, state = lm.generate(prompts, stop_token_ids=None, return_state=True)
    stream = lm.stream(prompts, stop_token_ids=None)
    list(stream)
    assert stream.state.num_tokens.tolist() == state.num_tokens.tolist()
    return (state.num_tokens - lengths).tolist()


@pytest.mark.parametrize(
    "length, expected", [(LENGTH - 2, 2), (LENGTH - 1, 1), (LENGTH, 0), (LENGTH + 1, LENGTH)]
)
def test_sequence_length_bounds_the_text_or_for_a_longer_prompt_the_answer(lm, length, expected):
    prompts = [prompt_of(lm, length), "The"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        new = count_new(lm, prompts)
    rest = LENGTH - len(lm.preprocessor.prompt_token_ids(["The"])[0])
    assert new == [expected, rest]
    said = [str(warning.message) for warning in caught if "sequence_length" in str(warning.message)]
    # An empty text would look like a model with nothing to say.
    assert bool(said) == (expected == 0)
    assert all("Prompt 0 has 12 tokens" in text and "max_new_tokens" in text for text in said)


def test_a_limit_of_the_callers_gives_no_warning(lm):
    prompt = prompt_of(lm, LENGTH)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert lm.generate(prompt, max_length=LENGTH) == prompt
        assert lm.generate(prompt, max_new_tokens=0) == prompt
