"""Quantization and LoRA, as KerasHub does them: what they reach, and what is left of the model."""

import gc
import json

import keras
import numpy as np
import pytest

import tiny
from keras_rgemma import RGemmaBackbone, RGemmaCausalLM

TEMPORAL = {
    "recurrent_block": ("linear_x", "linear_y", "linear_out", "rg_lru/input_gate", "rg_lru/a_gate"),
    "attention_block": ("query", "key", "value", "attention_output"),
}
KINDS = ("recurrent_block", "attention_block")  # of the tiny model's layers
LINEAR = {
    f"block_{i}/{part}/{name}"
    for i, kind in enumerate(KINDS)
    for part, names in ((kind, TEMPORAL[kind]), ("mlp_block", ("ffw_gate", "ffw_up", "ffw_down")))
    for name in names
}
LINEAR_NAMES = sorted({path.split("/")[-1] for path in LINEAR})
PROMPT = np.array([[2, 300, 301], [2, 302, 303]], "int32")

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have a `quantize` method:UserWarning")


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


@pytest.fixture(scope="module", autouse=True)
def quick_collections():
    """Keras collects garbage for every weight it replaces: let it look at new objects alone."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


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
    # All that is asked; quick, as one layer alone has a matrix.
    lm.quantize("int8", filters=lambda layer: "token" in layer.name)
    assert quantized_layers(lm, "int8") == {"token_embedding"}


# === Quantization ===


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


def test_the_layers_of_gptq():
    lm = tiny.causal_lm(None)
    assert lm.get_quantization_layer_structure("int8") is None
    structure = lm.get_quantization_layer_structure("gptq")
    assert set(structure) == {"pre_block_layers", "sequential_blocks"}
    assert structure["pre_block_layers"] == [lm.backbone.token_embedding]
    assert structure["sequential_blocks"] == lm.backbone.transformer_layers
    # GPTQ runs them one after another on x alone: with the embeddings scaled, that is the model.
    inputs = tiny.arrays()
    inputs["padding_mask"] = np.ones_like(inputs["padding_mask"])
    x = inputs["token_ids"]
    for layer in structure["pre_block_layers"]:
        x = layer(x)
    x = x * lm.backbone.config.embedding_scale
    for layer in structure["sequential_blocks"]:
        x = layer(x)
    expected = tiny.numpy(lm.backbone(inputs))
    np.testing.assert_allclose(tiny.numpy(lm.backbone.final_norm(x)), expected, atol=1e-5)


# === LoRA ===


def lora_model(names=None, mode=None):
    """A small model with LoRA, its linear layers quantized first if asked to."""
    lm = tiny.causal_lm(None)
    tiny.randomize(lm)
    if mode:
        # Not the embedding: Keras' int8 logits let no gradient through.
        lm.quantize(mode, filters=lambda layer: layer is not lm.backbone.token_embedding)
    lm.backbone.enable_lora(4, target_layer_names=names)
    return lm


def losses(lm, steps, learning_rate=1e-2):
    lm.compile(optimizer=keras.optimizers.Adam(learning_rate), weighted_metrics=[])
    ids = tiny.arrays()["token_ids"]
    x = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
    y = np.roll(ids, -1, axis=1)
    return [float(lm.train_on_batch(x, y)) for _ in range(steps)]


def with_lora(lm):
    return layers_with(lm, lambda layer: getattr(layer, "lora_enabled", False))


def test_lora_as_in_keras_hub():
    lm = lora_model()
    before = {weight.path: tiny.numpy(weight) for weight in lm.weights}
    assert {"block_1/attention_block/query", "block_1/attention_block/value"} <= with_lora(lm)
    # What is trained is part of a layer that LoRA was enabled on.
    assert {w.path.rsplit("/", 1)[0] for w in lm.trainable_weights} == with_lora(lm)
    received = losses(lm, 4)
    assert received[-1] < received[0]
    trained = {weight.path for weight in lm.trainable_weights}
    for weight in lm.weights:
        moved = np.abs(tiny.numpy(weight) - before[weight.path]).max()
        assert (moved > 0) == (weight.path in trained), weight.path
    written = generated(lm)
    np.testing.assert_array_equal(written[:, 3:], logits(lm, written)[:, 2:6].argmax(axis=-1))


def test_lora_on_every_linear_layer_changes_nothing_at_first():
    lm = tiny.randomize(tiny.causal_lm(None))
    before = logits(lm)
    lm.backbone.enable_lora(4, target_layer_names=LINEAR_NAMES)
    assert with_lora(lm) == LINEAR
    # The second factor is zero, so that the sum is the same to the last bit.
    np.testing.assert_array_equal(logits(lm), before)
    for layer in lm._flatten_layers():
        if layer.path in LINEAR:
            layer.lora_kernel_b.assign(np.ones(layer.lora_kernel_b.shape))
    assert np.abs(logits(lm) - before).max() > 0.01


def test_lora_weights_are_saved_and_loaded(tmp_path):
    path = str(tmp_path / "a.lora.h5")
    lm, other = (lora_model(LINEAR_NAMES) for _ in range(2))
    for i, weight in enumerate(lm.trainable_weights):
        if "lora" in weight.path:
            weight.assign(np.random.RandomState(i).normal(size=weight.shape))
    lm.backbone.save_lora_weights(path)
    other.backbone.load_lora_weights(path)
    pairs = list(zip(lm.trainable_weights, other.trainable_weights, strict=True))
    assert sum("lora" in weight.path for weight, _ in pairs) == 2 * len(with_lora(lm))
    for weight, loaded in pairs:
        if "lora" in weight.path:
            np.testing.assert_array_equal(tiny.numpy(loaded), tiny.numpy(weight))


def test_lora_on_a_saved_model_is_merged(tmp_path):
    lm = tiny.randomize(tiny.causal_lm(None))
    lm.backbone.enable_lora(4, target_layer_names=LINEAR_NAMES)
    for layer in lm._flatten_layers():
        if layer.path in LINEAR:
            layer.lora_kernel_b.assign(np.full(layer.lora_kernel_b.shape, 0.1))
    lm.save(tmp_path / "lm.keras")
    loaded = keras.saving.load_model(tmp_path / "lm.keras")
    assert not with_lora(loaded)
    # (W + A B) x, of which both parts were added up before or after: float32 sums.
    np.testing.assert_allclose(logits(loaded), logits(lm), atol=2e-4)


def test_lora_on_a_quantized_model_learns():
    lm = lora_model(LINEAR_NAMES, "int8")
    kernels = [w for w in lm.weights if keras.backend.standardize_dtype(w.dtype) == "int8"]
    before = [tiny.numpy(kernel) for kernel in kernels]
    received = losses(lm, 6)
    assert received[-1] < received[0] - 0.3
    assert len(kernels) > 10
    for kernel, value in zip(kernels, before, strict=True):
        np.testing.assert_array_equal(tiny.numpy(kernel), value)
