"""LoRA comes back as LoRA: from `.keras` files, presets, copies and pickles."""

import copy
import json
import pickle

import keras
import numpy as np
import pytest

import keras_rgemma
import tiny
from backend_independent import backend_independent
from keras_rgemma.lora import backbone as lora
from keras_rgemma.lora.structure import structure

TARGETS = ["ffw_up", "a_gate", "query"]
EPOCHS = 2
TEXTS = [f"text number {i} of many" for i in range(4)]


def new(mode=None, **overrides):
    """A model with LoRA, on layers in int8 if that is the mode; the same one in every call."""
    keras.utils.set_random_seed(1)
    lm = tiny.randomize(tiny.causal_lm(num_layers=2 if mode is None else 1, **overrides))
    if mode:
        lm.quantize(mode, filters=lambda layer: layer.name in (*TARGETS[:2], "token_embedding"))
    lm.backbone.enable_lora(2, TARGETS if mode is None else TARGETS[:2], alpha=3)
    compile(lm)
    return lm


def compile(lm):
    lm.compile(keras.optimizers.Adam(1e-2))


def fit(lm, epochs=EPOCHS):
    return lm.fit(TEXTS, epochs=epochs, batch_size=2, shuffle=False, verbose=0).history["loss"]


def by_keras_file(lm, tmp_path):
    lm.save(tmp_path / "lm.keras")
    return keras.saving.load_model(tmp_path / "lm.keras")


def by_preset(lm, tmp_path):
    lm.save_to_preset(tmp_path / "preset")
    return keras_rgemma.RGemmaCausalLM.from_preset(tmp_path / "preset")


def by_shards(lm, tmp_path):
    lm.save_to_preset(tmp_path / "preset", max_shard_size=3e-5)
    return keras_rgemma.RGemmaCausalLM.from_preset(tmp_path / "preset")


def by_copy(lm, tmp_path):
    return copy.deepcopy(lm)


def by_pickle(lm, tmp_path):
    return pickle.loads(pickle.dumps(lm))


WITH_OPTIMIZER = [by_keras_file, by_copy, by_pickle]


def assert_same(found, expected):
    assert structure(found.backbone) == structure(expected.backbone)
    for name in ("weights", "trainable_weights"):
        pair = getattr(found, name), getattr(expected, name)
        assert [weight.path for weight in pair[0]] == [weight.path for weight in pair[1]]
        for one, other in zip(*pair, strict=True):
            np.testing.assert_array_equal(tiny.numpy(one), tiny.numpy(other), err_msg=one.path)
    for path, layer in lora.lora_layers_by_path(expected.backbone).items():
        other = lora.lora_layers_by_path(found.backbone)[path]
        assert (other.lora_rank, other.lora_alpha) == (layer.lora_rank, layer.lora_alpha)


@pytest.fixture(scope="module", params=[None, "int8"], ids=["plain", "int8"])
def unbroken(request):
    """What training gives that nothing interrupts: the mode, a model halfway, losses, the end."""
    lm = new(request.param)
    losses = [fit(lm), fit(lm)]
    halfway = new(request.param)
    assert fit(halfway) == losses[0]
    return request.param, halfway, losses[1], lm


@pytest.mark.parametrize("revive", WITH_OPTIMIZER)
def test_training_goes_on_bitwise(unbroken, revive, tmp_path):
    _, halfway, losses, expected = unbroken
    revived = revive(halfway, tmp_path)
    assert_same(revived, halfway)
    assert fit(revived) == losses
    assert_same(revived, expected)
    for one, other in zip(revived.optimizer.variables, expected.optimizer.variables, strict=True):
        np.testing.assert_array_equal(tiny.numpy(one), tiny.numpy(other), err_msg=one.path)


@pytest.mark.parametrize("revive", [by_preset, by_shards])
def test_a_preset_takes_the_same_next_step(unbroken, revive, tmp_path):
    _, halfway, *_ = unbroken
    revived, other = revive(halfway, tmp_path), by_copy(halfway, tmp_path)
    assert_same(revived, halfway)
    losses = []
    for lm in (revived, other):
        compile(lm)
        losses.append(fit(lm, epochs=1))
    assert losses[0] == losses[1]
    assert_same(revived, other)


@backend_independent
@pytest.mark.parametrize("revive", [by_keras_file, by_preset])
def test_what_is_trained_beside_lora_is_trained_again(revive, tmp_path):
    lm = new()
    block = lm.backbone.transformer_layers[1]
    block.channel_pre_norm.trainable = True
    lora.linear_layers(lm.backbone)["block_1/attention_block/query"].trainable = False
    block.mlp_block.ffw_up.bias.trainable = True
    paths = [weight.path for weight in lm.trainable_weights]
    assert "block_1/channel_pre_norm/scale" in paths and len(paths) == 2 * 3 + 2
    revived = revive(lm, tmp_path)
    assert [weight.path for weight in revived.trainable_weights] == paths
    assert_same(revived, lm)


@backend_independent
@pytest.mark.parametrize("revive", [by_keras_file, by_preset])
def test_a_backbone_frozen_as_a_whole_stays_frozen(revive, tmp_path):
    lm = new()
    lm.backbone.trainable = False
    revived = revive(lm, tmp_path)
    assert not revived.backbone.trainable and not revived.trainable_weights
    assert_same(revived, lm)


@backend_independent
def test_a_backbone_alone_keeps_lora(tmp_path):
    backbone = new().backbone
    backbone.save(tmp_path / "backbone.keras")
    revived = keras.saving.load_model(tmp_path / "backbone.keras")
    assert structure(revived) == structure(backbone)
    config = json.loads(json.dumps(backbone.get_config()))
    revived = keras_rgemma.RGemmaBackbone.from_config(config)
    assert revived.get_config() == backbone.get_config()
    # Without the weights it can learn: A is drawn at random, B is zero.
    layer = revived.transformer_layers[0].mlp_block.ffw_up
    a, b, _ = layer.lora_values()
    assert a.std() > 0.01 and not b.any()


@backend_independent
def test_no_random_numbers_are_made_for_the_adapters_of_a_preset(tmp_path, monkeypatch):
    lm = new()
    lm.save_to_preset(tmp_path)

    def refuse(*args, **kwargs):
        raise AssertionError("a random initial value was made")

    monkeypatch.setattr(keras.initializers.VarianceScaling, "__call__", refuse)
    with pytest.raises(AssertionError, match="random"):
        keras_rgemma.RGemmaBackbone.from_preset(tmp_path, load_weights=False)
    assert_same(keras_rgemma.RGemmaCausalLM.from_preset(tmp_path), lm)


@backend_independent
@pytest.mark.parametrize(
    "lora, reason",
    [
        ({}, "must have `layers`"),
        ([1], "must have `layers`"),
        ({"layers": {"block_7/query": {"rank": 2, "alpha": 2}}}, "'block_7/query', which is no"),
        ({"layers": {"block_0/mlp_block/ffw_up": {"rank": 2}}}, "must have `rank` and `alpha`"),
        ({"layers": {"block_0/mlp_block/ffw_up": {"rank": 0, "alpha": 2}}}, "`rank` must be a pos"),
        ({"layers": {"block_0/mlp_block/ffw_up": {"rank": 2, "alpha": "2"}}}, "`alpha` of 'block"),
        ({"layers": {"block_0/mlp_block/ffw_up": {"rank": 10**9, "alpha": 2}}}, "asks for LoRA of"),
    ],
)
def test_lora_that_a_config_cannot_have_is_refused(lora, reason, tmp_path):
    new().backbone.save_to_preset(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["config"]["lora"] = lora
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=reason):
        keras_rgemma.RGemmaBackbone.from_preset(tmp_path)


@pytest.mark.parametrize("whole", [True, False], ids=["lm", "backbone"])
def test_weights_that_are_refused_change_nothing(whole, tmp_path):
    path = tmp_path / "a.weights.h5"
    lm, other = (tiny.randomize(tiny.causal_lm(None), seed) for seed in (2, 3))
    lm.backbone.enable_lora(4, "ffw_up")
    other.backbone.enable_lora(2, ["ffw_up", "query"])
    lm, other = (x if whole else x.backbone for x in (lm, other))
    lm.save_weights(path)
    before = [tiny.numpy(weight) for weight in other.weights]
    with pytest.raises(ValueError, match=r"LoRA of rank 4 for 'block_./mlp_block/ffw_up'.* rank 2"):
        other.load_weights(path)
    for weight, value in zip(other.weights, before, strict=True):
        np.testing.assert_array_equal(tiny.numpy(weight), value)


@backend_independent
@pytest.mark.parametrize("shards", [None, 3e-5], ids=["one file", "shards"])
def test_presets_whose_config_names_no_lora_enable_it_on_quantized_layers(shards, tmp_path):
    """As the first versions wrote them."""
    backbone = new("int8").backbone
    backbone.save_to_preset(tmp_path, shards or 10)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["config"]["lora"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    revived = keras_rgemma.RGemmaBackbone.from_preset(tmp_path)
    assert structure(revived) == structure(backbone)
    for one, other in zip(revived.weights, backbone.weights, strict=True):
        np.testing.assert_array_equal(tiny.numpy(one), tiny.numpy(other))
