"""Errors of wrong values say what to do next, behind the value and what was expected."""

import json

import numpy as np
import pytest

import keras_rgemma
import tiny
from backend_independent import backend_independent
from keras_rgemma.benchmarks import plots
from keras_rgemma.checkpoints import huggingface
from keras_rgemma.checkpoints.deepmind import check_sizes
from keras_rgemma.checkpoints.shards import Shards
from keras_rgemma.config import RGemmaConfig
from keras_rgemma.evaluation.harness import HarnessModel
from keras_rgemma.files import read_json
from keras_rgemma.lora import adapters
from keras_rgemma.state import continuing
from keras_rgemma.text.examples import read_examples

pytestmark = backend_independent

SIZES = {
    "vocabulary_size": 8,
    "num_layers": 1,
    "hidden_dim": 12,
    "intermediate_dim": 4,
    "num_query_heads": 3,
}
PADDED = np.array([[1, 1, 1], [0, 1, 1]])


@pytest.fixture(scope="module")
def lm():
    return tiny.causal_lm()


@pytest.fixture(scope="module")
def state(lm):
    return lm.prefill(["a", "b"])


def refused(function, *args, **kwargs):
    """The message of the error that a call raises."""
    with pytest.raises((ValueError, TypeError, IndexError)) as caught:
        function(*args, **kwargs)
    return str(caught.value)


def test_of_arrays(lm):
    ids, mask = [[5, 6], [7, 8]], [[1, 1], [1, 0]]
    for inputs, words in (
        ({"token_ids": [[5.5, 6.0]]}, "`.astype('int32')`"),
        ({"token_ids": ids, "padding_mask": [[1, 1]]}, "Received (1, 2). Give each token a number"),
        ({"token_ids": ids, "padding_mask": np.array(mask) - 0.5}, "Write 1 at tokens and 0"),
        ({"token_ids": ids, "padding_mask": np.array(mask) - 1}, "Received -1. Write 1 at tokens"),
    ):
        assert words in refused(lm.generate, inputs)
    inputs = {"token_ids": np.ones((2, 3)), "padding_mask": np.ones((2, 2))}
    assert "Received: (2, 2). Give each token" in refused(lm.backbone, inputs)
    assert "Received: [[]]. Leave empty rows out" in refused(lm.log_probabilities, [[]])


def test_of_prompts(lm):
    assert "Received 2 batches: call it for each" in refused(
        lambda: lm.stream(Dataset([["a"], ["b"]]))
    )
    several = Dataset([["a"], {"token_ids": np.array([[5]])}])
    assert "several kinds: call once for each" in refused(lm.generate, several, batch_size=2)


class Dataset:
    """As much of tf.data as prompts are read with."""

    def __init__(self, batches):
        self.batches = batches

    def as_numpy_iterator(self):
        return iter(self.batches)


def test_of_states(lm, state):
    for function, words in (
        (lambda: state[[[0]]], "Received: [[0]]. Write `state[0]`"),
        (lambda: keras_rgemma.RGemmaState.concatenate([]), "[]. `prefill` makes states"),
        (lambda: lm.generate("a", state=7), "Received: 7. `prefill`, "),
        (lambda: continuing.check_lengths([2**31]), "2,147,483,648. Begin anew with a part"),
        (
            lambda: continuing.prepend_carried_column(state, np.ones((2, 3)), PADDED),
            "a pad before a token in row 1. Move the pads",
        ),
    ):
        assert words in refused(function)
    other = tiny.randomize(tiny.causal_lm(), seed=5).prefill("a")
    assert "Join those that one model made" in refused(
        keras_rgemma.RGemmaState.concatenate, [state, other]
    )


def test_of_examples_and_sizes():
    read = {"prompts": ["a", "b"], "responses": ["c"]}
    assert "1 responses. Pass a response for each prompt" in refused(read_examples, read, {})
    assert "Make both lists" in refused(read_examples, {**read, "responses": "c"}, {})
    assert "Pass 1, as the" in refused(RGemmaConfig, **SIZES, num_key_value_heads=2)


def test_of_files(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("[1]", encoding="utf-8")
    assert "Received: [1]. Correct the file" in refused(read_json, path)
    path.write_text("{", encoding="utf-8")
    assert "Correct the file, or fetch it again" in refused(read_json, path)
    path.write_text("{}", encoding="utf-8")
    (tmp_path / "model.weights.h5").touch()
    load = keras_rgemma.RGemmaCausalLM.from_preset
    assert "Save the preset again" in refused(load, str(tmp_path))
    assert "one.x nor index.json. Fetch" in refused(Shards, tmp_path, "one.x", "index.json")
    (tmp_path / "index.json").write_text("{}", encoding="utf-8")
    assert "Fetch it again" in refused(Shards, tmp_path, "one.x", "index.json")
    index = {"weight_map": {"a": "1.x", "b": "2.x"}}
    (tmp_path / "index.json").write_text(json.dumps(index), encoding="utf-8")
    shards = Shards(tmp_path, "one.x", "index.json")
    shards.add("a", "1.x")
    assert "'1.x' and in '2.x'. Remove the file" in refused(shards.add, "a", "2.x")
    assert "lists it in '2.x'. Fetch the index" in refused(shards.add, "b", "1.x")


def test_of_configs():
    config = huggingface.config_of(RGemmaConfig(**SIZES), "float32")
    for change, words in (
        ({"hidden_size": None}, "['hidden_size'], which the architecture depends on. Take"),
        ({"rope_parameters": 3}, "Received: 3. Take the config.json"),
        ({"rope_scaling": 2}, "rope_scaling=2. This model cannot"),
    ):
        assert words in refused(huggingface.config_from, {**config, **change})
    for change in ({"scale_embeddings": False}, {"final_logit_soft_cap": None}):
        message = refused(huggingface.config_of, RGemmaConfig(**SIZES, **change), "float32")
        assert message.endswith("Keep it with `save_to_preset`.")


def test_of_tensors(tmp_path):
    class Source:
        shapes, dtypes = {"a": (3,)}, {"a": np.dtype("float32")}

    message = refused(check_sizes, tmp_path, Source, 11)
    assert "12 bytes" in message and message.endswith("Fetch it again.")


def test_of_adapters(lm):
    adapter = adapters.Adapter(np.ones((16, 1)), np.ones((1, 9)), 1.0)
    path = next(iter(tiny.LINEAR - {"block_0/recurrent_block/rg_lru/a_gate"}))
    for name in ("block_9/nowhere", path):
        message = refused(adapters.install, lm.backbone, {name: adapter}, "a.lora.h5")
        assert name in message and message.endswith("Load the base that it was trained on.")
    config = {**lm.backbone.get_config(), "lora": {"layers": {"block_9": {}}}}
    assert "Take the config that was" in refused(keras_rgemma.RGemmaBackbone.from_config, config)
    config["lora"] = {"layers": {path: {"rank": 2}}}
    assert "Take the config that was" in refused(keras_rgemma.RGemmaBackbone.from_config, config)


def test_of_the_harness_and_plots(tmp_path):
    lm = tiny.causal_lm(preprocessor=None)
    assert "preprocessor=None. Load it with `from_preset`" in refused(HarnessModel, lm)
    panel = plots.Panel("t", "x", "y", [])
    assert "Measure again" in refused(plots.draw, tmp_path / "a.svg", [panel])
