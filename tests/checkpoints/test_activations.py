"""An activation of transformers is the same function here, or is refused by name."""

import keras
import numpy as np
import pytest
import torch
from transformers.activations import ACT2CLS, ACT2FN

import tiny
from backend_independent import backend_independent
from keras_rgemma import RGemmaBackbone
from keras_rgemma.checkpoints import huggingface
from keras_rgemma.config import ACTIVATIONS, RGemmaConfig
from keras_rgemma.layers.activation import activation

CONTENTS = huggingface.config_of(RGemmaConfig(**tiny.SIZES, layer_norm_epsilon=1e-6), "float32")
TRAINED = {"prelu", "xielu"}  # they have parameters of their own


def config_with(name):
    return huggingface.config_from({**CONTENTS, "hidden_activation": name})


@pytest.mark.parametrize("name", sorted(set(ACT2CLS) - TRAINED))
def test_the_values_are_those_of_transformers(name):
    # Beyond 15 below zero theirs and ours differ in how soon they round to zero.
    x = np.linspace(-15, 15, 3001, dtype="float32")
    expected = ACT2FN[name](torch.from_numpy(x)).numpy()
    function = activation(config_with(name).activation)
    # A few roundings of float32, at values that are differences of numbers near 1 times x.
    found = tiny.numpy(function(keras.ops.convert_to_tensor(x)))
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=3e-6)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_dtype_stays(name, dtype):
    x = keras.ops.convert_to_tensor(np.linspace(-3, 3, 7), dtype=dtype)
    assert keras.backend.standardize_dtype(activation(name)(x).dtype) == dtype


@backend_independent
@pytest.mark.parametrize("name", [*sorted(TRAINED), "gelu_of_tomorrow", ["silu"], None])
def test_others_are_refused_by_name(name):
    with pytest.raises(ValueError, match="hidden_activation") as error:
        config_with(name)
    assert name is None or repr(name) in str(error.value)


@backend_independent
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_what_is_written_is_read_as_the_same(name, tmp_path):
    backbone = tiny.backbone(activation=name)
    contents = huggingface.config_of(backbone.config, "float32")
    assert contents["hidden_activation"] in ACT2CLS
    assert huggingface.config_from(contents).activation == name
    backbone.save_to_preset(tmp_path / "preset")
    for loaded in (
        RGemmaBackbone.from_preset(tmp_path / "preset"),
        RGemmaBackbone.from_config(backbone.get_config()),
    ):
        assert loaded.activation == name
        assert loaded.transformer_layers[0].mlp_block.get_config()["activation"] == name
