"""The registry of presets: what a name stands for, and what is said when it stands for nothing."""

import json
import pathlib

import pytest

import keras_rgemma
from keras_rgemma.checkpoints.hub import CONFIG, TOKENIZER
from keras_rgemma.checkpoints.hub import WEIGHTS as ALL
from keras_rgemma.checkpoints.presets import has_tokenizer, presets, resolve
from keras_rgemma.config import RGemmaConfig

PUBLISHED = {
    "rgemma_2b_en": "hf://google/recurrentgemma-2b",
    "rgemma_instruct_2b_en": "hf://google/recurrentgemma-2b-it",
    "rgemma_9b_en": "hf://google/recurrentgemma-9b",
    "rgemma_instruct_9b_en": "hf://google/recurrentgemma-9b-it",
}
WEIGHTS = {
    "rgemma_tiny_en": "embedded",
    **PUBLISHED,
    "griffin_7b": None,
    "hawk_7b": None,
}
CLASSES = (
    keras_rgemma.RGemmaBackbone,
    keras_rgemma.RGemmaCausalLM,
    keras_rgemma.RGemmaCausalLMPreprocessor,
    keras_rgemma.RGemmaTokenizer,
)


def config_of(name):
    saved = json.loads((pathlib.Path(presets()[name]["path"]) / "config.json").read_text())
    assert saved["registered_name"] == "keras_rgemma>RGemmaBackbone"
    fields = {
        key: value
        for key, value in saved["config"].items()
        if key not in ("name", "trainable", "dtype")
    }
    return RGemmaConfig(**fields)


def test_where_the_weights_come_from():
    assert {name: found["weights"] for name, found in presets().items()} == WEIGHTS
    assert all(found["description"] for found in presets().values())
    sizes = [found["parameter_count"] for found in presets().values()]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_parameter_count_is_that_of_the_config(name):
    assert presets()[name]["parameter_count"] == config_of(name).parameter_count


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_preset_folder_serves_the_causal_lm(name):
    metadata = json.loads((pathlib.Path(presets()[name]["path"]) / "metadata.json").read_text())
    assert metadata["tasks"] == ["CausalLM"]


def test_what_sets_the_architectures_apart():
    assert config_of("hawk_7b").layer_types == ("recurrent",) * config_of("hawk_7b").num_layers
    griffin = config_of("griffin_7b")
    assert griffin.layer_types[:3] == ("recurrent", "recurrent", "attention")
    assert griffin.final_logit_soft_cap is None
    assert not griffin.scale_embeddings
    for size, layers, width in (("2b", 26, 2560), ("9b", 38, 4096)):
        base, tuned = config_of(f"rgemma_{size}_en"), config_of(f"rgemma_instruct_{size}_en")
        assert base == tuned
        assert (base.num_layers, base.hidden_dim, base.recurrence_width) == (layers, width, width)
        assert (base.key_size, base.sliding_window_size) == (256, 2048)
        assert (base.final_logit_soft_cap, base.vocabulary_size) == (30.0, 256_000)


@pytest.mark.parametrize("cls", CLASSES)
def test_the_registry_cannot_be_changed_through_a_class(cls):
    found = cls.presets
    found["rgemma_tiny_en"]["description"] = "mine"
    found.pop("hawk_7b")
    assert set(cls.presets) == set(WEIGHTS)
    assert cls.presets["rgemma_tiny_en"]["description"] != "mine"


@pytest.mark.parametrize("name", PUBLISHED)
def test_about_how_many_bytes_are_fetched(name):
    """In bfloat16; the 9B files hold the embedding twice."""
    config = config_of(name)
    twice = config.vocabulary_size * config.hidden_dim if "9b" in name else 0
    expected = 2 * (config.parameter_count + twice)
    assert 0 <= presets()[name]["download_bytes"] - expected < 5e6  # the tokenizer


@pytest.mark.parametrize("cls", CLASSES[:2])
@pytest.mark.parametrize("name", ["griffin_7b", "hawk_7b"])
def test_weights_that_do_not_exist_are_refused_before_anything_is_built(cls, name, monkeypatch):
    monkeypatch.setattr(keras_rgemma.RGemmaBackbone, "__init__", None)
    with pytest.raises(ValueError, match=rf"{name}.*no public weights.*load_weights=False"):
        cls.from_preset(name)
    # The way out that the message names: the architecture alone.
    assert resolve(name, CONFIG) == presets()[name]["path"]


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(
    "typo, name",
    [
        ("rgemma_instruct_9b", "rgemma_instruct_9b_en"),
        ("Hawk_7b", "hawk_7b"),
        ("grifin_7b", "griffin_7b"),
        ("recurrentgemma_2b_en", "rgemma_2b_en"),
    ],
)
def test_an_unknown_name_is_told_the_closest(cls, typo, name):
    with pytest.raises(ValueError, match=rf"{typo!r}.*'{name}'\?.*hf://"):
        cls.from_preset(typo)


def test_what_is_there_is_taken_as_it_is(tmp_path):
    assert resolve(str(tmp_path), ALL) == str(tmp_path)
    assert resolve(tmp_path, ALL) == str(tmp_path)
    handle = "kaggle://someone/model/keras/variant"  # whose files KerasHub fetches
    assert resolve(handle, ALL) == handle
    assert resolve(handle, ALL, revision=3) == f"{handle}/3"
    with pytest.raises(ValueError, match=r"config\.json"):
        keras_rgemma.RGemmaCausalLM.from_preset(str(tmp_path))
    with pytest.raises(ValueError, match=r"`revision`.*'main'"):
        resolve(tmp_path, ALL, revision="main")


@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_name_is_unknown(empty):
    with pytest.raises(ValueError, match=f"Unknown preset {empty!r}.*Did you mean"):
        keras_rgemma.RGemmaCausalLM.from_preset(empty)


@pytest.mark.parametrize("preset", [None, [], 3])
def test_what_is_no_name_at_all(preset):
    with pytest.raises(TypeError, match="rgemma_tiny_en"):
        keras_rgemma.RGemmaCausalLM.from_preset(preset)


def test_tokenizers_of_presets():
    tiny, large = presets()["rgemma_tiny_en"]["path"], presets()["griffin_7b"]["path"]
    assert has_tokenizer(tiny)
    assert resolve("rgemma_tiny_en", TOKENIZER) == tiny
    assert not has_tokenizer(large)
    for cls in CLASSES[2:]:
        with pytest.raises(ValueError, match=r"griffin_7b.*without a tokenizer.*'rgemma_tiny_en'"):
            cls.from_preset("griffin_7b")
    tokenizer = keras_rgemma.RGemmaTokenizer.from_preset("rgemma_tiny_en")
    assert tokenizer.vocabulary_size() == config_of("rgemma_tiny_en").vocabulary_size
