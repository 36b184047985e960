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

import keras_rgemma
import tiny
from backend_independent import backend_independent
from keras_rgemma.keras_internals.data_adapters import BatchesAdapter
from keras_rgemma.text import batches as lazy

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
        return len(getattr(self.values, "obj", self.values))

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
        "generator of rows of a DataFrame": lambda: (
            row for _, row in pd.DataFrame(PROMPT_ROWS).iterrows()
        ),
        "list of rows of a DataFrame": lambda: [
            row for _, row in pd.DataFrame(PROMPT_ROWS).iterrows()
        ],
        "torch Dataset of rows of a DataFrame": lambda: Items(pd.DataFrame(PROMPT_ROWS).iloc),
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
        "DataLoader of contents in parts": lambda: loader(PARTS),
        "grain of contents in parts in batches": lambda: grain.MapDataset.source(PARTS).batch(2),
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


@pytest.mark.parametrize("kind", ["chats", "ids"])
def test_a_loader_makes_batches_of_examples_of_several_lengths(kind, losses):
    if kind == "chats":
        values = [CHATS[0], CHATS[1] + CHATS[2], CHATS[3]]
    else:
        values = [IDS[0], IDS[1][:3], IDS[2][:4]]
    expected = losses(values, batch_size=BATCH)
    np.testing.assert_allclose(losses(loader(values)), expected, rtol=1e-6)


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


# === What else a source may do ===


@pytest.mark.parametrize("name", ["list", "generator", "tf.data", "Arrow table", "prepared"])
def test_validation_takes_every_form(name, losses, trained):
    lm = trained[0]
    expected = losses(TEXTS[:3], method="evaluate", batch_size=BATCH)
    forms = {
        "list": lambda: TEXTS[:3],
        "generator": lambda: iter(TEXTS[:3]),
        "tf.data": lambda: tf.data.Dataset.from_tensor_slices(TEXTS[:3]).batch(BATCH),
        "Arrow table": lambda: pa.table({"text": TEXTS[:3]}),
        "prepared": lambda: tiny.preprocessor(LENGTH)(TEXTS[:3]),
    }
    lm.stop_training = False
    rate = lm.optimizer.learning_rate
    lm.optimizer.learning_rate = 0.0
    try:
        for x in (TEXTS, iter(TEXTS)):
            settings = {"batch_size": BATCH, "epochs": 2, "verbose": 0}
            history = lm.fit(x, validation_data=forms[name](), **settings).history
            np.testing.assert_allclose(history["val_loss"], 2 * [expected], rtol=1e-5)
    finally:
        lm.optimizer.learning_rate = rate


@pytest.mark.parametrize("name", ["list", "datasets", "DataLoader", "generator of batches"])
def test_predict_and_evaluate_take_every_form(name, losses, trained):
    lm = trained[0]
    data = (lambda: TEXTS) if name == "list" else FORMS["texts"][name]
    expected = losses(TEXTS, method="evaluate", batch_size=BATCH)
    logits = lm.predict(TEXTS, batch_size=BATCH, verbose=0)
    found = losses(data(), method="evaluate", batch_size=BATCH)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    for packing in (False, True):
        lm.preprocessor = tiny.preprocessor(LENGTH, packing=packing)
        found = lm.predict(data(), batch_size=BATCH, verbose=0)
        np.testing.assert_allclose(found, logits, atol=1e-5)


def test_a_source_is_read_as_it_is_needed(losses, trained):
    read, seen = [], []

    def endless():
        while True:
            for text in TEXTS:
                read.append(text)
                yield text

    look = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(len(read))
    )
    for packing in (False, True):
        del read[:], seen[:]
        kwargs = {"batch_size": 1, "steps_per_epoch": 3, "callbacks": [look]}
        found = losses(endless(), packing, **kwargs)
        assert len(found) == 2 and len(seen) == 6
        if not packing:
            # TensorFlow reads ahead on its own.
            assert seen[0] <= 4 or keras.config.backend() == "tensorflow"
    # The second epoch goes on where the first one stopped.
    texts = [TEXTS[i % 5] for i in range(6)]
    expected = losses(texts[:3], batch_size=1)[:1]
    found = losses(endless(), batch_size=1, steps_per_epoch=3)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    whole = losses(texts, batch_size=1)[0]
    np.testing.assert_allclose(np.mean(found), whole, rtol=1e-5)


@pytest.mark.parametrize("method", ["fit", "evaluate"])
def test_an_error_of_a_source_is_its_own(method, losses):
    class Broken(Exception):
        pass

    def source():
        yield from TEXTS
        raise Broken("file")

    with pytest.raises(Broken, match="file"):
        losses(source(), method=method, batch_size=1)
    with pytest.raises(TypeError, match="example 5: None"):
        losses(iter([*TEXTS, None]), method=method, batch_size=1)
    with pytest.raises(ValueError, match="There is no example"):
        losses(iter([]), method=method)


@backend_independent
def test_a_source_that_shuffles_itself_gives_every_batch_once():
    class Turning(Batches):
        def on_epoch_end(self):
            self.values = self.values[::-1]

    turning = Turning([[text] for text in TEXTS])
    rows = lazy.Batches(tiny.preprocessor(LENGTH), turning, None, packing=False, lost="skip")
    adapter = BatchesAdapter(rows, turning)
    expected = tiny.preprocessor(LENGTH)(TEXTS)[1]
    for _ in range(3):
        next(adapter.generator())  # Keras looks at a batch before it begins
        adapter.on_epoch_end()
        order = 1 if turning.values[0] == [TEXTS[0]] else -1
        found = np.concatenate([y for _, y, _ in adapter.generator()])
        np.testing.assert_array_equal(found, expected[::order])
        adapter.on_epoch_end()


def test_weights_of_examples(losses, trained):
    lm = trained[0]
    weights = np.array([1.0, 0.0, 2.0, 0.5, 0.0])
    each = [losses([text], method="evaluate") for text in TEXTS]
    for form in (TEXTS, np.array(TEXTS), pd.DataFrame({"text": TEXTS})):
        kwargs = {"method": "evaluate", "batch_size": 5}
        found = losses(form, sample_weight=weights, **kwargs)
        assert found == pytest.approx(np.dot(weights, each) / 5, rel=1e-5)
    lm.preprocessor = tiny.preprocessor(LENGTH, packing=True)
    _, _, weight = lm.preprocessor(TEXTS, sample_weight=weights)
    assert set(np.unique(weight)) == {0, 0.5, 1, 2} and len(weight) < 5
    found = losses(TEXTS, True, sample_weight=weights, method="evaluate", batch_size=5)
    assert found * len(weight) == pytest.approx(np.dot(weights, each), rel=1e-4)
    assert losses(TEXTS, sample_weight=pd.Series(weights), batch_size=5)[1] != 0
    for wrong in (weights[:4], weights[:, None], ["a"] * 5):
        with pytest.raises(ValueError, match="a number for each of the 5 examples"):
            losses(TEXTS, sample_weight=wrong)
    with pytest.raises(ValueError, match="read lazily"):
        losses(iter(TEXTS), sample_weight=weights)


def test_arguments_that_examples_do_not_take(losses):
    with pytest.raises(ValueError, match=r"`class_weight`.*`sample_weight`"):
        losses(TEXTS, class_weight={0: 1.0})
    with pytest.raises(ValueError, match=r"`validation_split`.*`validation_data`"):
        losses(iter(TEXTS), validation_split=0.2)
    assert len(losses(TEXTS, validation_split=0.4, batch_size=BATCH)) == 2
    with pytest.raises(ValueError, match="batch dimension"):
        losses("a river")
    with pytest.raises(ValueError, match="batch dimension"):
        losses(IDS[0])


def test_rows_without_labels_learn_the_next_tokens(losses, trained):
    x, _, weight = tiny.preprocessor(LENGTH)(TEXTS)
    data = [x, (x,), iter([x]), Items([{k: v[i] for k, v in x.items()} for i in range(5)])]
    found = [losses(part, method="evaluate", batch_size=5) for part in data]
    assert weight[:, -1].sum() == 0  # all labels are in the rows
    np.testing.assert_allclose(found, losses(TEXTS, method="evaluate", batch_size=5), rtol=1e-6)
    predicted = trained[0].predict(iter([x]), verbose=0)
    np.testing.assert_allclose(predicted, trained[0].predict(x, verbose=0), atol=1e-6)


@backend_independent
def test_a_preprocessor_with_a_call_of_its_own_is_called(losses, trained):
    class Own(keras_rgemma.RGemmaCausalLMPreprocessor):
        backbone_cls = None  # else KerasHub takes it for the class of presets

        def call(self, x, y=None, sample_weight=None, sequence_length=None):
            seen.append(x)
            return super().call(x, y, sample_weight, sequence_length)

    seen, lm = [], trained[0]
    loss = losses(TEXTS, method="evaluate", batch_size=BATCH)
    lm.preprocessor = Own(tiny.tokenizer(), sequence_length=LENGTH)
    assert lm.evaluate(TEXTS, batch_size=BATCH, verbose=0) == pytest.approx(loss, rel=1e-6)
    assert seen
