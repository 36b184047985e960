"""On a CPU JAX's matrices lie turned after a text; nobody sees it."""

import copy

import keras
import numpy as np
import pytest

import tiny
from generation import plain
from keras_rgemma import RGemmaCausalLM

pytestmark = pytest.mark.skipif(keras.config.backend() != "jax", reason="arrays of JAX")

PROMPT = {"token_ids": np.array([[2, 17, 33, 8, 21]])}
MODES = ["float32", "bfloat16", "int8"]


def model_of(mode):
    dtype = mode.removeprefix("int8 ") if mode != "int8" else "float32"
    keras.utils.set_random_seed(0)
    lm = plain.lively_model(dtype=dtype, gain=1.0)
    if mode.startswith("int8"):
        lm.quantize("int8")
    return lm


def tokens(lm, **options):
    return lm.generate(PROMPT, max_new_tokens=9, stop_token_ids=None, **options)


def turned_variables(lm):
    from keras_rgemma.keras_internals.jax import TurnedVariable

    return [x for x in lm.variables if type(x) is TurnedVariable]


def values(lm):
    return [tiny.numpy(x) for x in lm.variables]


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("mode", MODES)
def test_text_and_weights_are_the_same(mode, monkeypatch):
    lm = model_of(mode)
    before = values(lm)
    text, state = tokens(lm, return_state=True)
    matrices = sum(x.path.endswith("kernel") and len(x.shape) == 2 for x in lm.variables)
    assert len(turned_variables(lm)) > 0.6 * matrices  # not those of the convolutions
    assert_same(values(lm), before)
    scores = tiny.numpy(lm.score(PROMPT["token_ids"]))

    other = model_of(mode)
    monkeypatch.setattr("keras_rgemma.generation.jax._matrices_to_turn", lambda model: [])
    expected, _ = tokens(other, return_state=True)
    assert not turned_variables(other)
    np.testing.assert_array_equal(text["token_ids"], expected["token_ids"])
    np.testing.assert_allclose(scores, tiny.numpy(other.score(PROMPT["token_ids"])), 1e-2, 1e-2)
    tokens(other, state=state)  # the fingerprint is the same


def test_models_that_convert_their_weights_keep_them_as_they_are():
    lm = plain.lively_model(dtype="mixed_bfloat16")
    tokens(lm)
    assert not turned_variables(lm)


@pytest.mark.parametrize("mode", MODES)
def test_files_and_copies(mode, tmp_path):
    lm = model_of(mode)
    expected = tokens(lm)["token_ids"]
    lm.save_weights(tmp_path / "turned.weights.h5")
    lm.save_to_preset(tmp_path / "preset")
    loaded, straight = model_of(mode), model_of(mode)
    tokens(loaded)
    for weight in loaded.weights:
        weight.assign(np.zeros(weight.shape))
    for other in (loaded, straight):
        other.load_weights(tmp_path / "turned.weights.h5")
    preset = RGemmaCausalLM.from_preset(tmp_path / "preset", preprocessor=None)
    for other in (loaded, straight, preset, copy.deepcopy(lm)):
        assert_same(values(other)[: len(lm.weights)], values(lm)[: len(lm.weights)])
        np.testing.assert_array_equal(tokens(other)["token_ids"], expected)


@pytest.mark.parametrize("mode", MODES)
def test_training_goes_on_as_without_a_text_before(mode):
    def losses(writes):
        lm = model_of(mode)
        if mode == "int8":
            lm.backbone.enable_lora(2)
        if writes:
            tokens(lm)
        lm.compile(keras.optimizers.SGD(0.1), weighted_metrics=[])
        ids = np.random.RandomState(0).randint(3, 60, (2, 9))
        batch = {"token_ids": ids[:, :-1], "padding_mask": np.ones((2, 8))}, ids[:, 1:]
        found = []
        for _ in range(3):
            found += lm.fit(*batch, shuffle=False, verbose=0).history["loss"]
            assert not turned_variables(lm)
            if writes:
                tokens(lm)
                assert turned_variables(lm)
        return found, values(lm)

    (found, weights), (expected, other_weights) = losses(True), losses(False)
    assert found == expected
    assert_same(weights[: len(other_weights)], other_weights)


def test_quantization_and_lora_after_a_text():
    lm, other = model_of("bfloat16"), model_of("bfloat16")
    tokens(lm)
    for x in (lm, other):
        x.quantize("int8")
    np.testing.assert_array_equal(tokens(lm)["token_ids"], tokens(other)["token_ids"])
    for x in (lm, other):
        keras.utils.set_random_seed(1)
        x.backbone.enable_lora(2)
        for weight in x.backbone.trainable_weights:
            weight.assign(np.random.RandomState(2).normal(0, 0.1, weight.shape))
    np.testing.assert_array_equal(tokens(lm)["token_ids"], tokens(other)["token_ids"])
    for x in (lm, other):
        x.backbone.merge_lora()
    np.testing.assert_array_equal(tokens(lm)["token_ids"], tokens(other)["token_ids"])


def test_a_fingerprint_is_kept(monkeypatch):
    from keras_rgemma.state import jax as state

    lm = model_of("bfloat16")
    _, first = tokens(lm, return_state=True)
    tokens(lm, state=first)  # which has turned arrays to read
    monkeypatch.setattr(state, "_read", None)  # nothing is read again
    tokens(lm, state=first)
