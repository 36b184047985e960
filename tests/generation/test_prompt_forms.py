"""Texts in every form that people keep them in give what a list of str gives."""

import collections

import keras
import numpy as np
import pytest
import tensorflow as tf

import tiny
from generation import plain

TEXTS = ["The quick", "A lighthouse is a tower", ""]
LIMITS = {"max_new_tokens": 5, "stop_token_ids": None}


class ArrowColumn:
    """A column with the methods of a `pyarrow.ChunkedArray`, whose elements are no str."""

    def __init__(self, values):
        self.values = values

    def __iter__(self):
        return map(repr, self.values)

    def __len__(self):
        return len(self.values)

    def to_pylist(self):
        return list(self.values)


def column_of(module, make):
    """A form of a library that may not be there."""
    return lambda texts: make(pytest.importorskip(module), texts)


def pandas_series(pandas, texts):
    return pandas.Series(texts, index=range(7, 7 + len(texts)))


FORMS = {
    "list": list,
    "tuple": tuple,
    "array of str": np.array,
    "array of objects": lambda texts: np.array(texts, object),
    "array of bytes": lambda texts: np.array([text.encode() for text in texts]),
    "bytes": lambda texts: [text.encode() for text in texts],
    "tf strings": tf.constant,
    "values of a dict": lambda texts: dict(enumerate(texts)).values(),
    "deque": collections.deque,
    "column {text}": lambda texts: {"text": texts},
    "rows {text}": lambda texts: [{"text": text, "id": 3} for text in texts],
    "Arrow": ArrowColumn,
    "generator": lambda texts: (text for text in texts),
    "iterator": iter,
    "rows of a generator": lambda texts: ({"text": text} for text in texts),
    "pandas": column_of("pandas", pandas_series),
    "pandas table": column_of("pandas", lambda pandas, x: pandas.DataFrame({"text": x, "id": 1})),
    "pyarrow": column_of("pyarrow", lambda pyarrow, texts: pyarrow.chunked_array([texts])),
    "datasets": column_of("datasets", lambda x, texts: x.Dataset.from_dict({"text": texts})),
    "datasets column": column_of(
        "datasets", lambda x, texts: x.Dataset.from_dict({"text": texts})["text"]
    ),
}
ITERATORS = ("generator", "iterator", "rows of a generator")


@pytest.fixture(scope="module")
def lm():
    keras.utils.set_random_seed(0)
    return tiny.wordy(tiny.causal_lm(sequence_length=24))


@pytest.fixture(scope="module")
def expected(lm):
    return lm.generate(TEXTS, strip_prompt=True, **LIMITS)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_texts_gives_the_same(lm, expected, form):
    make = FORMS[form]
    assert lm.generate(make(TEXTS), strip_prompt=True, **LIMITS) == expected
    deltas = zip(*lm.stream(make(TEXTS), **LIMITS), strict=True)
    assert list(map("".join, deltas)) == expected
    losses = tiny.numpy(lm.score(make(TEXTS), scoring_mode="loss"))
    np.testing.assert_array_equal(losses, tiny.numpy(lm.score(TEXTS, scoring_mode="loss")))
    if form not in ITERATORS:
        state = lm.prefill(make(TEXTS))
        assert lm.generate(["", "", ""], state=state, **LIMITS) == expected


@pytest.mark.parametrize("form", ITERATORS)
def test_an_iterator_is_the_pieces_of_one_text_to_prefill(lm, form):
    state, whole = lm.prefill(FORMS[form](TEXTS)), lm.preprocessor.prompt_token_ids(TEXTS)
    assert state.num_tokens.tolist() == [sum(map(len, whole)) - 2]  # and the start token once


@pytest.mark.parametrize("make", [str, str.encode, np.str_, np.array, tf.constant])
def test_one_text_gives_one_text(lm, expected, make):
    assert lm.generate(make(TEXTS[0]), strip_prompt=True, **LIMITS) == expected[0]
    assert "".join(lm.stream(make(TEXTS[0]), **LIMITS)) == expected[0]
    assert lm.prefill(make(TEXTS[0])).batch_size == 1
    assert lm.score(make(TEXTS[0])).shape[0] == 1


MISSING = {
    "None": lambda texts: [*texts, None],
    "NaN": lambda texts: [*texts, float("nan")],
    "array": lambda texts: np.array([*texts, None], object),
    "column": lambda texts: {"text": [*texts, None]},
    "rows": lambda texts: [*({"text": text} for text in texts), {"text": None}],
    "generator": lambda texts: (text for text in [*texts, None]),
    "pandas": column_of("pandas", lambda pandas, texts: pandas.Series([*texts, None])),
}


@pytest.mark.parametrize("form", MISSING)
def test_a_missing_text_is_named_with_its_index(lm, form):
    for method in (lm.generate, lm.stream, lm.prefill, lm.score):
        with pytest.raises(TypeError, match=r"(Prompt|Piece) 3 .*(None|nan)"):
            method(MISSING[form](TEXTS))


def test_other_things_are_refused_by_name(lm):
    for method in (lm.generate, lm.stream, lm.prefill):
        with pytest.raises(ValueError, match=r"`token_ids`.*`text`.*\['prompts'\]"):
            method({"prompts": TEXTS})
    for method in (lm.generate, lm.stream, lm.score):
        with pytest.raises(ValueError, match="at least one prompt"):
            method([])
    other = plain.lively_model()
    for method in (other.prefill, other.score):
        with pytest.raises(ValueError, match="without a preprocessor"):
            method("The")


def test_the_column_of_texts_may_have_another_name(lm, expected):
    lm.preprocessor.columns = {"text": "question"}
    for form in ({"question": TEXTS}, [{"question": text} for text in TEXTS]):
        assert lm.generate(form, strip_prompt=True, **LIMITS) == expected
        assert lm.score(form).shape[0] == len(TEXTS)
    with pytest.raises(ValueError, match="`question`"):
        lm.generate({"text": TEXTS}, **LIMITS)
    lm.preprocessor.columns = None
    assert lm.generate({"text": TEXTS}, strip_prompt=True, **LIMITS) == expected
