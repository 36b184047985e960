"""Files that the version before configs named LoRA wrote load as they did: `fixtures/`."""

import pathlib

import keras
import numpy as np
import pytest

import keras_rgemma
import tiny
from fixtures.make_files import INT8, NEXT, TARGETS, logits
from keras_rgemma.lora import backbone as lora

FOLDER = pathlib.Path(__file__).parent.parent / "fixtures"
# PyTorch wrote them; other backends add up in another order.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
ROUNDED = {"int8": 0.01}  # activations lie near the middle of two integers now and then

pytestmark = pytest.mark.filterwarnings(
    # The optimizer of A and B alone, for a model into which they were merged.
    "ignore:Skipping variable loading for optimizer:UserWarning",
)


@pytest.fixture(scope="module")
def expected():
    return np.load(FOLDER / "expected.npz")


def base():
    """The model before LoRA."""
    lm = tiny.causal_lm(None)
    lm.backbone.enable_lora(2, TARGETS)
    lm.load_weights(FOLDER / "lora.weights.h5")
    lm.backbone.disable_lora()
    return lm


def enabled(lm):
    return lora.lora_layers_by_path(lm.backbone)


def test_weights_go_into_a_model_with_lora(expected):
    lm = tiny.causal_lm(None)
    lm.backbone.enable_lora(2, TARGETS)
    lm.load_weights(FOLDER / "lora.weights.h5")
    np.testing.assert_allclose(logits(lm), expected["lora"], **CLOSE)
    assert {layer.lora_alpha for layer in enabled(lm).values()} == {4.0}
    lm.backbone.disable_lora()
    np.testing.assert_allclose(logits(lm), expected["base"], **CLOSE)


def test_weights_of_a_model_without_lora_are_merged(expected):
    lm = tiny.causal_lm(None)
    paths = [weight.path for weight in lm.weights]
    lm.load_weights(FOLDER / "lora.weights.h5")
    assert [weight.path for weight in lm.trainable_weights] == paths
    np.testing.assert_allclose(logits(lm), expected["lora"], **CLOSE)


@pytest.mark.parametrize("cls", [keras_rgemma.RGemmaCausalLM, keras_rgemma.RGemmaBackbone])
def test_a_preset_is_merged(cls, expected):
    loaded = cls.from_preset(FOLDER / "preset")
    lm = loaded if cls is keras_rgemma.RGemmaCausalLM else keras_rgemma.RGemmaCausalLM(loaded)
    assert not enabled(lm) and len(lm.trainable_weights) == len(lm.weights)
    np.testing.assert_allclose(logits(lm), expected["lora"], **CLOSE)


def test_a_keras_file_of_training_is_merged(expected):
    lm = keras.saving.load_model(FOLDER / "training.keras")
    assert not enabled(lm) and len(lm.trainable_weights) == len(lm.weights)
    np.testing.assert_allclose(logits(lm), expected["trained"], **CLOSE)


def load_preset():
    return keras_rgemma.RGemmaCausalLM.from_preset(FOLDER / "preset_int8")


def load_keras_file():
    return keras.saving.load_model(FOLDER / "int8.keras")


def load_weights():
    lm = tiny.causal_lm(None, num_layers=1)
    lm.quantize("int8", filters=lambda layer: layer.name in INT8)
    lm.backbone.load_weights(FOLDER / "preset_int8" / "model.weights.h5")
    return lm


@pytest.mark.parametrize("load", [load_preset, load_keras_file, load_weights])
def test_quantized_layers_keep_lora_and_train_it_alone(load, expected):
    lm = load()
    layers = enabled(lm)
    assert {path.rpartition("/")[2] for path in layers} == set(TARGETS[:2])
    assert {(layer.lora_rank, layer.lora_alpha) for layer in layers.values()} == {(2, 4.0)}
    assert {weight.name for weight in lm.trainable_weights} == {"lora_kernel_a", "lora_kernel_b"}
    difference = np.abs(logits(lm) - expected["int8"]).max()
    assert difference < ROUNDED["int8"] * np.abs(expected["int8"]).max()


def test_an_adapter_fits_its_base(expected):
    lm = base()
    lm.backbone.load_lora_weights(FOLDER / "adapter.lora.h5")
    np.testing.assert_allclose(logits(lm), expected["lora"], **CLOSE)


def test_a_state_goes_on(expected):
    state = keras_rgemma.RGemmaState.load(FOLDER / "state.rgstate")
    found = tiny.numpy(base().score(NEXT, state=state))
    np.testing.assert_allclose(found, expected["state"], **CLOSE)
