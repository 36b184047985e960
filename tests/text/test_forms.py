"""Texts and examples in every form: what is read, and what is refused."""

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import tensorflow as tf
import torch

import tiny
from backend_independent import backend_independent
from keras_rgemma.text.examples import (
    Conversation,
    Pair,
    Tokens,
    read_element,
    read_examples,
)
from keras_rgemma.text.forms import read_texts

TEXTS = ["a river", "", "über 数"]
USER, MODEL = {"role": "user", "content": "Hi"}, {"role": "model", "content": "Yes"}
CHAT = [USER, MODEL]

FORMS = {
    "list": TEXTS,
    "tuple": tuple(TEXTS),
    "generator": (text for text in TEXTS),
    "keys": dict.fromkeys(TEXTS).keys(),
    "array": np.array(TEXTS),
    "array of objects": np.array(TEXTS, dtype=object),
    "array of bytes": np.array([text.encode() for text in TEXTS]),
    "list of bytes": [text.encode() for text in TEXTS],
    "list of NumPy's str": [np.str_(text) for text in TEXTS],
    "list of arrays": [np.array(text) for text in TEXTS],
    "pandas": pd.Series(TEXTS),
    "pandas, another index": pd.Series(TEXTS, index=[7, 8, 9], dtype="string"),
    "categories": pd.Series(TEXTS, dtype="category"),
    "DataFrame": pd.DataFrame({"text": TEXTS}),
    "Arrow": pa.array(TEXTS),
    "Arrow, chunked": pa.chunked_array([TEXTS[:2], TEXTS[2:]]),
    "Arrow table": pa.table({"n": [1, 2, 3], "text": TEXTS}),
    "Arrow batch": pa.record_batch({"text": TEXTS}),
    "datasets": datasets.Dataset.from_dict({"text": TEXTS}),
    "datasets column": datasets.Dataset.from_dict({"text": TEXTS})["text"],
    "datasets, lazy": datasets.Dataset.from_dict({"text": TEXTS}).to_iterable_dataset(),
    "tf": tf.constant(TEXTS),
    "list of tf": [tf.constant(text) for text in TEXTS],
    "tf.data": tf.data.Dataset.from_tensor_slices(TEXTS),
    "tf.data in batches": tf.data.Dataset.from_tensor_slices(TEXTS).batch(2),
    "tf.data of rows": tf.data.Dataset.from_tensor_slices({"text": TEXTS}).batch(2),
    "columns": {"text": TEXTS},
    "rows": [{"text": text, "id": 3} for text in TEXTS],
}


@backend_independent
@pytest.mark.parametrize("name", FORMS)
def test_texts_are_read_in_every_form(name):
    found = read_texts(FORMS[name])
    assert found == TEXTS and {type(text) for text in found} == {str}


@backend_independent
def test_one_text_is_read_in_every_form():
    for text in ("ü", "ü".encode(), np.str_("ü"), np.array("ü"), tf.constant("ü")):
        assert read_texts(text) == ["ü"]
    assert read_texts([]) == []


@backend_independent
@pytest.mark.parametrize(
    "texts, message",
    [
        (["a", None], r"^Prompt 1 must be a str\. Received: None, a missing value"),
        (pd.Series(["a", "b", np.nan]), r"^Prompt 2 .* nan, a missing value"),
        (pd.Series(["a", None], dtype="string"), r"^Prompt 1 .*<NA>, a missing value"),
        (pa.array(["a", None]), r"^Prompt 1 .* None"),
        ([{"text": "a"}, {"text": None}], r"^Prompt 1 .* None"),
        (["a", 3], r"^Prompt 1 must be a str\. Received: 3 of type int"),
        ([["a"]], r"^Prompt 0 must be a str\. Received: \['a'\]"),
        (np.array([1.5]), r"^Prompt 0 must be a str"),
        (3, r"Texts are a str, an iterable or array of str.*Received: 3 of type int"),
        (None, r"Received: None of type NoneType"),
    ],
)
def test_what_is_no_text_is_named(texts, message):
    with pytest.raises(TypeError, match=message):
        read_texts(texts)


@backend_independent
def test_texts_are_refused_by_value():
    with pytest.raises(ValueError, match=r"Query 1 must be valid Unicode"):
        read_texts(["a", b"\xff"], name="query")
    for table in ({"body": ["a"]}, pd.DataFrame({"body": ["a"]}), pa.table({"body": ["a"]})):
        with pytest.raises(ValueError, match=r"under 'text'.*\['body'\]"):
            read_texts(table)
        assert read_texts(table, column="body") == ["a"]


# === Examples ===


@backend_independent
@pytest.mark.parametrize(
    "data, expected",
    [
        ("a", ["a"]),
        (("a", "b"), ["a", "b"]),
        ([("a", "b")], [Pair("a", "b")]),
        ({"prompts": "a", "responses": "b"}, [Pair("a", "b")]),
        ({"messages": CHAT}, [Conversation(CHAT)]),
        ({"prompt": [USER], "completion": [MODEL]}, [Conversation(CHAT, 1)]),
        (
            [CHAT, "a", ("b", "c"), [2, 5]],
            [Conversation(CHAT), "a", Pair("b", "c"), Tokens([2, 5])],
        ),
        ([2, 5], [Tokens([2, 5])]),
        (torch.tensor([[2, 5]]), [Tokens([2, 5])]),
    ],
)
def test_examples_in_memory(data, expected):
    assert read_examples(data, {})[0] == expected


@backend_independent
@pytest.mark.parametrize(
    "element, expected, is_batch",
    [
        ("a", ["a"], False),
        (["a", "b"], ["a", "b"], True),
        (("a", "b"), [Pair("a", "b")], False),
        ((["a", "b"], ["c", "d"]), [Pair("a", "c"), Pair("b", "d")], True),
        ([("a", "b")], [Pair("a", "b")], True),
        ((["a", "b"],), ["a", "b"], True),
        ((["a", "b"], None, None), ["a", "b"], True),
        (CHAT, [Conversation(CHAT)], False),
        (tuple(CHAT), [Conversation(CHAT)], False),
        ([CHAT], [Conversation(CHAT)], True),
        ([{"text": "a"}], ["a"], True),
        ({"text": ["a"]}, ["a"], True),
        ({"text": "a"}, ["a"], False),
        ([2, 5], [Tokens([2, 5])], False),
        (np.array([[2, 5], [2, 6]]), [Tokens([2, 5]), Tokens([2, 6])], True),
        (pd.DataFrame({"prompt": ["a"], "response": ["b"]}), [Pair("a", "b")], True),
    ],
)
def test_elements_of_a_source(element, expected, is_batch):
    assert read_element(element, {}) == (expected, is_batch)


@backend_independent
@pytest.mark.parametrize(
    "data, message",
    [
        (["a", None], r"Example 1|example 1: None"),
        ([("a", None)], r"example 0"),
        ({"prompts": ["a", "b"], "responses": ["c", np.nan]}, r"example 1: nan"),
        (pd.DataFrame({"text": ["a", None]}), r"example 1: (nan|None)"),
        ([{"messages": None}], r"example 0: None"),
        ([{"prompts": ["a"], "responses": ["b"]}], r"a dict of columns by itself.*example 0"),
        ([["a", "b"]], r"a list among the examples is a conversation|A list among"),
        ([1.5], r"example 0: 1.5"),
        (np.array([[0.5]]), r"A list among"),
        ([[True, False]], r"A list among"),
        ([{"prompt": CHAT, "completion": "a"}], r"two texts or two lists of messages.*example 0"),
        ({"prompt": ["a"], "completion": [CHAT]}, r"two texts or two lists of messages"),
    ],
)
def test_what_is_no_example_is_named(data, message):
    with pytest.raises(TypeError, match=message):
        tiny.preprocessor(16)(data)


@backend_independent
@pytest.mark.parametrize(
    "data, message",
    [
        ({"body": ["a"]}, r"with the keys \['body'\]\..*columns="),
        (pd.DataFrame({"question": ["a"], "answer": ["b"]}), r"columns \['answer', 'question'\]"),
        (pa.table({"question": ["a"]}), r"the columns \['question'\]"),
        ([{"prompt": "a"}], r"with the keys \['prompt'\]"),
        (CHAT, r"keys \['content', 'role'\]\. A conversation is one example"),
        ([{"text": "a", "messages": CHAT}], r"several kinds .*'messages', or 'text'"),
        ([{"prompt": [], "completion": CHAT}], r"a message at least.*\[\] and"),
        ([{"prompt": CHAT, "completion": []}], r"a message at least"),
        ({"prompt": ["a"], "response": ["b"], "completion": ["c"]}, r"several kinds"),
        ({"prompts": ["a"], "responses": "b"}, r"a column on one side"),
        ({"prompts": ["a"], "responses": ["b", "c"]}, r"There are 1 prompts and 2 responses"),
        ({"train": ["a"], "test": ["b"]}, r"\['test', 'train'\]"),
    ],
)
def test_columns_that_are_not_known_are_named(data, message):
    with pytest.raises(ValueError, match=message):
        tiny.preprocessor(16)(data)


@backend_independent
def test_other_names_of_columns():
    columns = {"prompts": "instruction", "responses": "output"}
    preprocessor = tiny.preprocessor(32, columns=columns)
    rows = [{"instruction": "What is", "output": " a river", "text": "all of it"}]
    expected = tiny.preprocessor(32)([("What is", " a river")])
    for data in (rows, pd.DataFrame(rows), [{"prompts": "What is", "responses": " a river"}]):
        for found, value in zip(preprocessor(data)[1:], expected[1:], strict=True):
            np.testing.assert_array_equal(found, value)
    (found,) = tf.data.Dataset.from_tensors({"instruction": "a", "output": "b"}).map(preprocessor)
    assert found[1].shape == (32,)
    revived = type(preprocessor).from_config(preprocessor.get_config())
    assert revived.columns == columns and type(preprocessor.get_config()["columns"]) is dict
    for name, column in (("text", "body"), ("messages", "chat")):
        value = "What is" if name == "text" else CHAT
        found = tiny.preprocessor(32, columns={name: column})([{column: value, "text": "other"}])
        np.testing.assert_array_equal(found[1], tiny.preprocessor(32)([value])[1])
    half = tiny.preprocessor(32, columns={"responses": "output"})
    np.testing.assert_array_equal(
        half([{"prompt": "What is", "output": " a river"}])[1], expected[1]
    )
    for row in ({"instruction": "a", "outputs": "b"}, {"instruction": "a", "response": "b"}):
        with pytest.raises(ValueError, match=r"Only some of the names .*'instruction'"):
            preprocessor([row])
    wrong_values = ({"text": 3}, {"text": None}, {"text": ""})
    for wrong in ({"instruction": "prompts"}, "text", {"labels": "y"}, *wrong_values):
        with pytest.raises(ValueError, match=r"`columns` is a dict of names among prompts"):
            tiny.preprocessor(columns=wrong)


@backend_independent
def test_the_loss_falls_on_a_completion_alone():
    more = [{"role": "user", "content": "And?"}, {"role": "assistant", "content": "Sea"}]
    system = {"role": "system", "content": "Be kind."}
    preprocessor = tiny.preprocessor(96)
    for before in ([], [system]):
        turns = [*before, *CHAT, more[0]]
        _, y, weight = preprocessor([{"prompt": turns, "completion": more[1:]}])
        _, whole, all_answers = preprocessor([[*before, *CHAT, *more]])
        np.testing.assert_array_equal(y, whole)
        assert preprocessor.text_of([y[0][weight[0] > 0]]) == ["Sea<end_of_turn>"]
        assert preprocessor.text_of([y[0][all_answers[0] > 0]]) == [
            "Yes<end_of_turn>Sea<end_of_turn>"
        ]


@backend_independent
def test_token_ids_are_texts_that_are_tokenized():
    preprocessor = tiny.preprocessor(6)
    ids = [[2, *tiny.tokenizer()(text), 1] for text in ("a", "The quick brown fox")]
    _, y, weight = preprocessor(ids)
    assert y[0].tolist() == [*ids[0][1:], 0, 0, 0, 0]
    assert weight[0].tolist() == [1, 1, 0, 0, 0, 0]
    assert y[1].tolist() == ids[1][1:7] and weight[1].all()
    single = preprocessor(ids[0])
    np.testing.assert_array_equal(single[1], y[0])
    packed = tiny.preprocessor(6, packing=True)(ids)
    assert packed[2].sum() == sum(len(row) - 1 for row in ids)


@backend_independent
def test_a_graph_gives_what_python_gives():
    preprocessor = tiny.preprocessor(24)
    turns = {key: [[turn[key] for turn in CHAT]] for key in USER}
    for data in (
        ["The quick brown fox", "a"],
        {"text": ["The quick"]},
        {"prompt": ["What is"], "completion": [" a river"]},
        {"messages": turns},
        [[2, 5, 6, 1], [2, 7, 8, 1]],
    ):
        dataset = tf.data.Dataset.from_tensor_slices(data)
        expected = preprocessor(data)
        (found,) = dataset.batch(4).map(preprocessor).as_numpy_iterator()
        (stacked,) = dataset.map(preprocessor).batch(4).as_numpy_iterator()
        for x, y, weight in (found, stacked):
            np.testing.assert_array_equal(x["token_ids"], expected[0]["token_ids"])
            np.testing.assert_array_equal(x["padding_mask"], expected[0]["padding_mask"])
            np.testing.assert_array_equal(y, expected[1])
            np.testing.assert_array_equal(weight, expected[2])
