"""Quantization, as KerasHub does it: what it reaches, and what is left of the model."""

import gc
import json
import weakref

import keras
import numpy as np
import pytest

import tiny
from keras_rgemma import RGemmaBackbone, RGemmaCausalLM

LINEAR = tiny.LINEAR
PROMPT = np.array([[2, 300, 301], [2, 302, 303]], "int32")


def logits(model, token_ids=None):
    inputs = tiny.arrays()
    if token_ids is not None:
        inputs = {"token_ids": token_ids, "padding_mask": np.ones_like(token_ids)}
    return tiny.numpy(model.score(**inputs)).astype("float64")


def generated(model):
    """The prompt and four tokens that follow."""
    prompt = {"token_ids": PROMPT, "padding_mask": np.ones_like(PROMPT)}
    return model.generate(prompt, max_new_tokens=4, stop_token_ids=None)["token_ids"]


def layers_with(model, test):
    return {layer.path for layer in model._flatten_layers() if test(layer)}


def quantized_layers(model, mode):
    return layers_with(model, lambda x: getattr(x, "quantization_mode", None) == mode)


@pytest.fixture(scope="module")
def quantized():
    """A quantized model and the logits it had before."""
    keras.utils.set_random_seed(0)
    lm = tiny.randomize(tiny.causal_lm())
    before = logits(lm)
    lm.quantize("int8")
    return lm, before


def test_a_model_can_be_quantized_before_its_first_use():
    lm = tiny.causal_lm(num_layers=1)
    lm.preprocessor(["a"])  # which builds layers of its own
    # All that is asked; quick, as one layer alone has a matrix.
    lm.quantize("int8", filters=lambda layer: "token" in layer.name)
    assert quantized_layers(lm, "int8") == {"token_embedding"}


# === Quantization ===


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_the_memory_of_a_weight_is_free_when_it_is_rounded(mode, monkeypatch):
    """Without a collection of garbage, which looks at new objects alone then."""
    lm = tiny.causal_lm(None)
    weights = [weight for weight in lm.weights if weight.path.rpartition("/")[0] in tiny.LINEAR]
    values = [weakref.ref(w.value) for w in weights if w.path.endswith("kernel")]
    assert values
    del weights
    monkeypatch.setattr(gc, "collect", lambda: None)
    lm.quantize(mode)
    assert not [value for value in values if value() is not None]


def test_every_linear_layer_and_the_embedding_are_quantized(quantized):
    lm, _ = quantized
    assert quantized_layers(lm, "int8") == LINEAR | {"token_embedding"}
    for weight in lm.weights:
        dtype, name = keras.backend.standardize_dtype(weight.dtype), weight.path.split("/")[-1]
        matrix = name in ("kernel", "embeddings") and "conv_1d" not in weight.path
        if matrix:
            assert dtype == "int8", weight.path
        elif name in ("a_param", "bias", "scale", "kernel"):
            assert dtype == "float32", weight.path


def test_the_logits_stay_near(quantized):
    lm, before = quantized
    error = np.sqrt(((logits(lm) - before) ** 2).mean()) / before.std()
    # A weight is off by 0.2 % of its channel's largest, and some twenty products add up.
    assert 0 < error < 0.04


def test_a_quantized_model_generates_what_its_logits_say(quantized):
    lm, _ = quantized
    written = generated(lm)
    assert written.shape == (2, 7)
    # Token by token or all at once: activations are scaled for each token alone.
    expected = logits(lm, written)[:, 2:6].argmax(axis=-1)
    np.testing.assert_array_equal(written[:, 3:], expected)


def test_quantized_files_are_exact(quantized, tmp_path):
    lm, _ = quantized
    lm.save(tmp_path / "lm.keras")
    loaded = keras.saving.load_model(tmp_path / "lm.keras")
    assert type(loaded) is RGemmaCausalLM
    assert quantized_layers(loaded, "int8") == LINEAR | {"token_embedding"}
    np.testing.assert_array_equal(logits(loaded), logits(lm))


def test_quantized_presets_are_exact(quantized, tmp_path):
    lm, _ = quantized
    lm.save_to_preset(str(tmp_path))
    loaded = RGemmaCausalLM.from_preset(str(tmp_path))
    assert quantized_layers(loaded, "int8") == LINEAR | {"token_embedding"}
    for weight, expected in zip(loaded.weights, lm.weights, strict=True):
        assert (weight.path, weight.dtype) == (expected.path, expected.dtype)
        np.testing.assert_array_equal(tiny.numpy(weight), tiny.numpy(expected))
    np.testing.assert_array_equal(logits(loaded), logits(lm))


def test_presets_of_four_bits_are_exact(tmp_path):
    """Their products are of weights that are rounded alone, the embedding's, too."""
    lm = tiny.randomize(tiny.causal_lm(num_layers=1))
    # A few kinds of layers; each takes its time.
    lm.quantize("int4", filters=lambda layer: layer.name in ("token_embedding", "ffw_up", "a_gate"))
    lm.save_to_preset(tmp_path)
    loaded = RGemmaCausalLM.from_preset(tmp_path)
    assert len(quantized_layers(loaded, "int4")) == 3
    np.testing.assert_array_equal(logits(loaded), logits(lm))


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "bfloat16"])
def test_quantized_presets_come_in_the_dtype_asked_for(quantized, dtype, tmp_path):
    lm, _ = quantized
    lm.save_to_preset(tmp_path)
    loaded = RGemmaCausalLM.from_preset(tmp_path, dtype=dtype)
    assert quantized_layers(loaded, "int8") == LINEAR | {"token_embedding"}
    made = tiny.backbone(dtype=dtype)
    assert loaded.backbone.compute_dtype == made.compute_dtype
    dtypes = {weight.path: weight.dtype for weight in made.weights}
    for weight, expected in zip(loaded.weights, lm.weights, strict=True):
        if expected.dtype == "int8":
            np.testing.assert_array_equal(tiny.numpy(weight), tiny.numpy(expected))
        elif weight.path in dtypes:  # what quantization left as it was
            assert weight.dtype == dtypes[weight.path]
    expected = logits(lm)
    # Halves have eight bits, and what is rounded to int8 may be rounded the other way.
    bound = 1e-5 if dtype == "float32" else 0.03
    assert np.sqrt(((logits(loaded) - expected) ** 2).mean()) < bound * expected.std()


def test_quantized_configs_survive_a_round_trip(quantized):
    lm, _ = quantized
    config = json.loads(json.dumps(lm.backbone.get_config()))
    revived = RGemmaBackbone.from_config(config)
    assert quantized_layers(revived, "int8") == LINEAR | {"token_embedding"}
    assert json.loads(json.dumps(revived.get_config())) == config
    assert [(w.path, w.shape, w.dtype) for w in revived.weights] == [
        (w.path, w.shape, w.dtype) for w in lm.backbone.weights
    ]


@pytest.mark.parametrize("mode", ["int8", "float8"])
def test_a_policy_map_quantizes_at_construction(mode):
    # How KerasHub's own test of backbones asks for it.
    paths = LINEAR | ({"token_embedding"} if mode == "int8" else set())
    policies = keras.dtype_policies.DTypePolicyMap("float32")
    for path in paths:
        policies[path] = keras.dtype_policies.get(f"{mode}_from_float32")
    backbone = tiny.backbone(dtype=policies)
    assert quantized_layers(backbone, mode) == paths
    config = json.loads(json.dumps(backbone.get_config()))
    revived = RGemmaBackbone.from_config(config)
    assert json.loads(json.dumps(revived.get_config())) == config
    revived.set_weights(backbone.get_weights())
    assert quantized_layers(revived, mode) == paths
