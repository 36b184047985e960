"""Every form of data: the loss, the order and the rows are those of lists of the same examples."""

import warnings

import datasets
import grain
import keras
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import tensorflow as tf
import torch

import tiny

LENGTH = 64
BATCH = 2
PROMPTS = ["What is a river?", "The quick", "She", "Call me when", "How much"]
RESPONSES = [" A river is water.", " brown fox", " sells sea shells", " the train", " wood"]
TEXTS = [prompt + response for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]
PAIRS = list(zip(PROMPTS, RESPONSES, strict=True))
TURNS = [
    ([{"role": "user", "content": prompt}], [{"role": "model", "content": response}])
    for prompt, response in PAIRS
]
CHATS = [prompt + completion for prompt, completion in TURNS]
IDS = [[int(id) for id in tiny.tokenizer()(text)][:5] for text in TEXTS]
# What each form is compared with: KerasHub's own.
EXPECTED = {
    "texts": TEXTS,
    "pairs": {"prompts": PROMPTS, "responses": RESPONSES},
    "chats": CHATS,
    "ids": IDS,
}


def rows_of(**columns):
    """Rows, dicts of one value a column."""
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def batches(values):
    return [values[i : i + BATCH] for i in range(0, len(values), BATCH)]


class Batches(keras.utils.PyDataset):
    def __init__(self, values):
        super().__init__()
        self.values = values

    def __len__(self):
        return len(self.values)

    def __getitem__(self, index):
        return self.values[index]


class Items(torch.utils.data.Dataset):
    def __init__(self, values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def __getitem__(self, index):
        return self.values[index]


class Stream(torch.utils.data.IterableDataset):
    def __init__(self, values):
        self.values = values

    def __iter__(self):
        return iter(self.values)


def renamed(name):
    """An assistant's conversations."""
    return [[turn | {"role": name[turn["role"]]} for turn in chat] for chat in CHATS]


def prepared(values):
    """Batches as the preprocessor returns them."""
    return [tiny.preprocessor(LENGTH)(batch) for batch in batches(values)]


def loader(values, **kwargs):
    return torch.utils.data.DataLoader(values, batch_size=BATCH, **kwargs)


def columns_of_turns(chat):
    """A conversation as `datasets` and tf.data keep it: a dict of columns."""
    return {key: [turn[key] for turn in chat] for key in ("role", "content")}


ASSISTANT = renamed({"user": "user", "model": "assistant"})
PARTS = [[t | {"content": [{"type": "text", "text": t["content"]}]} for t in c] for c in CHATS]
PROMPT_ROWS = rows_of(prompt=PROMPTS, completion=RESPONSES)
TURN_ROWS = [{"prompt": prompt, "completion": completion} for prompt, completion in TURNS]

FORMS = {
    "texts": {
        "tuple": lambda: tuple(TEXTS),
        "array of str": lambda: np.array(TEXTS),
        "array of objects": lambda: np.array(TEXTS, dtype=object),
        "array of bytes": lambda: np.array([text.encode() for text in TEXTS]),
        "pandas column": lambda: pd.Series(TEXTS),
        "pandas column of strings": lambda: pd.Series(TEXTS, dtype="string"),
        "DataFrame": lambda: pd.DataFrame({"text": TEXTS, "id": range(5)}),
        "Arrow array": lambda: pa.array(TEXTS),
        "Arrow column": lambda: pa.table({"a": TEXTS})["a"],
        "Arrow table": lambda: pa.table({"text": TEXTS}),
        "datasets column": lambda: datasets.Dataset.from_dict({"a": TEXTS})["a"],
        "tf strings": lambda: tf.constant(TEXTS),
        "rows": lambda: rows_of(text=TEXTS),
        "columns": lambda: {"text": TEXTS},
        "datasets": lambda: datasets.Dataset.from_dict({"text": TEXTS}),
        "datasets, lazy": lambda: datasets.Dataset.from_dict({"text": TEXTS}).to_iterable_dataset(),
        "tf.data": lambda: tf.data.Dataset.from_tensor_slices(TEXTS),
        "tf.data in batches": lambda: tf.data.Dataset.from_tensor_slices(TEXTS).batch(BATCH),
        "tf.data of rows": lambda: tf.data.Dataset.from_tensor_slices({"text": TEXTS}),
        "grain": lambda: grain.MapDataset.source(TEXTS),
        "grain in batches": lambda: grain.MapDataset.source(TEXTS).batch(BATCH),
        "grain, iterated": lambda: grain.MapDataset.source(TEXTS).to_iter_dataset(),
        "torch Dataset": lambda: Items(TEXTS),
        "torch IterableDataset": lambda: Stream(TEXTS),
        "DataLoader": lambda: loader(TEXTS),
        "DataLoader of rows": lambda: loader(rows_of(text=TEXTS)),
        "PyDataset": lambda: Batches(batches(TEXTS)),
        "PyDataset of arrays": lambda: Batches([(np.array(b),) for b in batches(TEXTS)]),
        "generator": lambda: (text for text in TEXTS),
        "generator of batches": lambda: iter(batches(TEXTS)),
        "generator of rows": lambda: iter(rows_of(text=TEXTS)),
        "generator of tables": lambda: iter(pa.table({"text": TEXTS}).to_batches(BATCH)),
        "generator of tensors": lambda: (tf.constant(batch) for batch in batches(TEXTS)),
    },
    "pairs": {
        "pairs": lambda: PAIRS,
        "rows": lambda: rows_of(prompts=PROMPTS, responses=RESPONSES),
        "prompt, response": lambda: {"prompt": PROMPTS, "response": RESPONSES},
        "prompt, completion": lambda: {"prompt": PROMPTS, "completion": RESPONSES},
        "rows of prompt, completion": lambda: PROMPT_ROWS,
        "columns of arrays": lambda: {
            "prompts": np.array(PROMPTS),
            "responses": pd.Series(RESPONSES),
        },
        "columns of tf": lambda: {
            "prompts": tf.constant(PROMPTS),
            "responses": tf.constant(RESPONSES),
        },
        "DataFrame": lambda: pd.DataFrame(PROMPT_ROWS),
        "Arrow table": lambda: pa.Table.from_pylist(PROMPT_ROWS),
        "datasets": lambda: datasets.Dataset.from_list(PROMPT_ROWS),
        "datasets, lazy": lambda: datasets.Dataset.from_list(PROMPT_ROWS).to_iterable_dataset(),
        "tf.data of pairs": lambda: tf.data.Dataset.from_tensor_slices((PROMPTS, RESPONSES)),
        "tf.data of batches of pairs": lambda: tf.data.Dataset.from_tensor_slices(
            (PROMPTS, RESPONSES)
        ).batch(BATCH),
        "tf.data of columns": lambda: tf.data.Dataset.from_tensor_slices(
            {"prompt": PROMPTS, "response": RESPONSES}
        ).batch(BATCH),
        "grain of pairs": lambda: grain.MapDataset.source(PAIRS),
        "grain of batches of pairs": lambda: grain.MapDataset.source(PAIRS).batch(BATCH),
        "grain of rows": lambda: grain.MapDataset.source(PROMPT_ROWS).batch(BATCH),
        "DataLoader of pairs": lambda: loader(PAIRS),
        "DataLoader of rows": lambda: loader(PROMPT_ROWS),
        "torch Dataset": lambda: Items(PAIRS),
        "PyDataset": lambda: Batches([tuple(zip(*b, strict=True)) for b in batches(PAIRS)]),
        "generator of pairs": lambda: iter(PAIRS),
        "generator of batches": lambda: iter(batches(PAIRS)),
        "generator of batches of rows": lambda: iter(batches(PROMPT_ROWS)),
    },
    "chats": {
        "tuple": lambda: tuple(CHATS),
        "role assistant": lambda: ASSISTANT,
        "contents in parts": lambda: PARTS,
        "rows": lambda: [{"messages": chat} for chat in ASSISTANT],
        "columns": lambda: {"messages": CHATS},
        "prompt and completion": lambda: TURN_ROWS,
        "columns of prompt and completion": lambda: pd.DataFrame(TURN_ROWS),
        "dicts of columns": lambda: [columns_of_turns(chat) for chat in CHATS],
        "DataFrame": lambda: pd.DataFrame({"messages": ASSISTANT}),
        "Arrow table": lambda: pa.table({"messages": ASSISTANT}),
        "DataFrame of arrays": lambda: pa.table(
            {"messages": ASSISTANT}
        ).to_pandas(),  # as from a Parquet file
        "datasets": lambda: datasets.Dataset.from_dict({"messages": ASSISTANT}),
        "datasets of prompt and completion": lambda: datasets.Dataset.from_list(TURN_ROWS),
        "tf.data": lambda: tf.data.Dataset.from_tensor_slices(
            {"messages": {key: [columns_of_turns(c)[key] for c in CHATS] for key in CHATS[0][0]}}
        ),
        "tf.data in batches": lambda: tf.data.Dataset.from_tensor_slices(
            {"messages": {key: [columns_of_turns(c)[key] for c in CHATS] for key in CHATS[0][0]}}
        ).batch(BATCH),
        "grain": lambda: grain.MapDataset.source(CHATS),
        "grain in batches": lambda: grain.MapDataset.source(
            [{"messages": chat} for chat in CHATS]
        ).batch(BATCH),
        "DataLoader": lambda: loader(CHATS),
        "DataLoader of rows": lambda: loader([{"messages": chat} for chat in CHATS]),
        "DataLoader of prompt and completion": lambda: loader(TURN_ROWS),
        "PyDataset": lambda: Batches(batches(CHATS)),
        "generator": lambda: iter(CHATS),
        "generator of batches": lambda: iter(batches([{"messages": chat} for chat in CHATS])),
    },
    "ids": {
        "array": lambda: np.array(IDS),
        "arrays": lambda: [np.array(ids) for ids in IDS],
        "padded array": lambda: np.pad(IDS, ((0, 0), (1, 3))),
        "backend's tensor": lambda: keras.ops.convert_to_tensor(IDS),
        "tf.data": lambda: tf.data.Dataset.from_tensor_slices(IDS),
        "tf.data in batches": lambda: tf.data.Dataset.from_tensor_slices(IDS).batch(BATCH),
        "grain": lambda: grain.MapDataset.source(np.array(IDS)).batch(BATCH),
        "DataLoader of lists": lambda: loader(IDS),
        "DataLoader of tensors": lambda: loader(torch.utils.data.TensorDataset(torch.tensor(IDS))),
        "torch Dataset": lambda: Items(torch.tensor(IDS)),
        "generator": lambda: iter(IDS),
        "generator of arrays": lambda: (np.array(batch) for batch in batches(IDS)),
    },
}
# What the preprocessor returns, of each kind. Nothing is left to pack.
PREPARED = {
    "arrays": lambda values: tiny.preprocessor(LENGTH)(values),
    "tf.data, mapped": lambda values: (
        tf.data.Dataset.from_tensor_slices(values).batch(BATCH).map(tiny.preprocessor(LENGTH))
    ),
    "tf.data, mapped before": lambda values: tf.data.Dataset.from_tensor_slices(values).map(
        tiny.preprocessor(LENGTH)
    ),
    "grain, mapped": lambda values: (
        grain.MapDataset.source(values).batch(BATCH).map(tiny.preprocessor(LENGTH))
    ),
    "grain, mapped before": lambda values: grain.MapDataset.source(values).map(
        tiny.preprocessor(LENGTH)
    ),
    "PyDataset": lambda values: Batches(prepared(values)),
    "generator": lambda values: iter(prepared(values)),
    "DataLoader": lambda values: loader(Items([tiny.preprocessor(LENGTH)(v) for v in values])),
    "torch Dataset of batches": lambda values: Items(prepared(values)),
}


@pytest.fixture(scope="module")
def trained():
    """A model, its first values, and the losses of what the forms are compared with."""
    keras.utils.set_random_seed(0)
    lm = tiny.causal_lm(sequence_length=LENGTH)
    lm.compile(keras.optimizers.SGD(0.05), weighted_metrics=[])
    return lm, [tiny.numpy(weight) for weight in lm.weights], {}


@pytest.fixture
def losses(trained):
    """A function that returns the losses of two epochs, each time from the same weights."""
    lm, values, _ = trained

    def losses(data, packing=False, method="fit", **kwargs):
        lm.preprocessor = tiny.preprocessor(LENGTH, packing=packing)
        for weight, value in zip(lm.weights, values, strict=True):
            weight.assign(value)
        if method == "evaluate":
            return lm.evaluate(data, verbose=0, **kwargs)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # and nothing is said on the way
            return lm.fit(data, epochs=2, shuffle=False, verbose=0, **kwargs).history["loss"]

    return losses


@pytest.fixture
def expected(trained, losses):
    """A function that returns the losses of a kind of examples in KerasHub's form."""

    def expected(kind, packing=False):
        cache = trained[2]
        if (kind, packing) not in cache:
            cache[kind, packing] = losses(EXPECTED[kind], packing, batch_size=BATCH)
        return cache[kind, packing]

    return expected


CASES = [(kind, name) for kind, forms in FORMS.items() for name in forms]


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("kind, name", CASES)
def test_a_form_gives_the_losses_of_lists(kind, name, packing, losses, expected):
    found = losses(FORMS[kind][name](), packing, batch_size=BATCH)
    np.testing.assert_allclose(found, expected(kind, packing), rtol=1e-6)


def test_the_forms_can_be_told_apart(losses, expected):
    """The comparison above can fail: by another kind, another order, and another packing."""
    kinds = [expected(kind, packing) for kind in FORMS for packing in (False, True)]
    kinds.append(losses(TEXTS[::-1], batch_size=BATCH))
    kinds.append(losses(CHATS[::-1], batch_size=BATCH))
    for i, one in enumerate(kinds):
        for other in kinds[:i]:
            assert abs(one[1] - other[1]) > 1e-4 * abs(one[1])


@pytest.mark.parametrize("kind, name", [c for c in CASES if "batches" in c[1]])
def test_a_source_keeps_its_batches(kind, name, losses, expected):
    np.testing.assert_allclose(losses(FORMS[kind][name]()), expected(kind), rtol=1e-6)


@pytest.mark.parametrize("name", PREPARED)
def test_prepared_rows_go_through(name, losses, expected):
    if "mapped before" in name or name in ("arrays", "DataLoader"):
        kwargs = {"batch_size": BATCH}
    else:
        kwargs = {}
    np.testing.assert_allclose(
        losses(PREPARED[name](TEXTS), **kwargs), expected("texts"), rtol=1e-6
    )
