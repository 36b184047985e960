"""Keras presets: made without random numbers, and refused when they are broken."""

import json

import keras
import numpy as np
import pytest

import keras_rgemma
import tiny
from keras_rgemma.layers.rg_lru import RecurrenceInitializer

CLASSES = (keras_rgemma.RGemmaCausalLM, keras_rgemma.RGemmaBackbone)


@pytest.fixture(scope="module")
def lm():
    return tiny.randomize(tiny.causal_lm(dropout=0.5))


@pytest.fixture
def folder(lm, tmp_path):
    lm.save_to_preset(tmp_path / "preset")
    return tmp_path / "preset"


def edit(folder, **changes):
    """Changes the architecture in both files that hold it."""
    for name, *path in (("config.json",), ("task.json", "config", "backbone")):
        contents = json.loads((folder / name).read_text())
        part = contents
        for key in path:
            part = part[key]
        part["config"].update(changes)
        (folder / name).write_text(json.dumps(contents))


@pytest.mark.parametrize("cls", CLASSES)
def test_no_random_numbers_are_made_for_weights_that_follow(cls, lm, folder, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a random initial value was made")

    for initializer in (
        keras.initializers.RandomNormal,
        keras.initializers.RandomUniform,
        keras.initializers.VarianceScaling,
        RecurrenceInitializer,
    ):
        monkeypatch.setattr(initializer, "__call__", refuse)
    with pytest.raises(AssertionError, match="random"):
        cls.from_preset(folder, load_weights=False)
    loaded = cls.from_preset(folder)
    for weight, expected in zip(loaded.weights, lm.weights, strict=True):
        np.testing.assert_array_equal(tiny.numpy(weight), tiny.numpy(expected))
    assert all(variable.value is not None for variable in loaded.variables)


def test_a_model_that_was_loaded_drops_out_with_seeds_of_its_own(folder):
    backbones = [keras_rgemma.RGemmaBackbone.from_preset(folder) for _ in range(2)]
    one, other = (tiny.numpy(x(tiny.arrays(), training=True)) for x in backbones)
    assert np.abs(one - other).max() > 0.01


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("name", ["num_layers", "vocabulary_size", "intermediate_dim"])
def test_absurd_sizes_are_refused_before_anything_is_made(cls, name, folder):
    edit(folder, **{name: 10**13})
    with pytest.raises(ValueError, match=r"asks for [\d,]+ parameters, but the weights are"):
        cls.from_preset(folder)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_weights_that_are_not_finite_are_refused(cls, value, tmp_path):
    lm = tiny.causal_lm()
    kernel = lm.backbone.transformer_layers[1].mlp_block.ffw_down.kernel
    array = tiny.numpy(kernel).copy()
    array[3, 2] = value
    kernel.assign(array)
    lm.save_to_preset(tmp_path / "preset")
    with pytest.raises(ValueError, match=r"block_1/mlp_block/ffw_down/kernel. holds NaN"):
        cls.from_preset(tmp_path / "preset")


@pytest.mark.parametrize("cls", CLASSES)
def test_a_file_that_was_cut_is_refused(cls, folder):
    file = folder / "model.weights.h5"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises((OSError, ValueError), match="truncated"):
        cls.from_preset(folder)


@pytest.mark.parametrize("cls", CLASSES)
def test_the_next_model_begins_with_random_weights_again(cls, folder):
    (folder / "model.weights.h5").unlink()
    with pytest.raises(Exception, match="weights"):
        cls.from_preset(folder)
    embeddings = tiny.backbone().token_embedding.embeddings
    assert np.abs(tiny.numpy(embeddings)).max() > 0.1
