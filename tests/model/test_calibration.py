"""GPTQ and AWQ: they see what goes through each layer, and their models can be kept."""

import warnings

import keras
import numpy as np
import pytest
from keras.quantizers import GPTQConfig
from keras.src.quantizers import awq, gptq, gptq_core
from keras.src.quantizers.awq_config import AWQConfig

import tiny
from keras_rgemma import RGemmaCausalLM
from keras_rgemma.model import calibration

# One layer, of one width: Keras' calibration compiles a program for each shape and column on JAX.
SIZES = {"num_layers": 1, "lru_dim": 16, "intermediate_dim": 16}
LINEAR = {path for path in tiny.LINEAR if path.startswith("block_0/")}
GATES = {path for path in LINEAR if "rg_lru" in path}
PLAIN = LINEAR - GATES
TEXT = 8 * tiny.SENTENCES[0]
SAMPLES, LENGTH = 8, 16
CONFIGS = {"gptq": GPTQConfig, "awq": AWQConfig}
METHODS = {
    "gptq": (gptq.GPTQ, "update_hessian_with_batch"),
    "awq": (awq.AWQ, "update_activation_magnitudes"),
}

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
]


def hidden_states(lm):
    ids = np.array(lm.preprocessor.tokenizer.token_id_rows([TEXT]))[:, :LENGTH]
    x = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
    return tiny.numpy(lm.backbone(x)).astype("float64")


def made(**overrides):
    keras.utils.set_random_seed(0)
    return tiny.randomize(tiny.causal_lm(**SIZES, **overrides))


def config_of(mode, lm, dataset=(TEXT,)):
    return CONFIGS[mode](
        dataset=list(dataset),
        tokenizer=lm.preprocessor.tokenizer,
        num_samples=SAMPLES,
        sequence_length=LENGTH,
        group_size=-1,
    )


def saved_and_loaded(lm, folder):
    """The model from a preset and from a `.keras` file."""
    lm.save_to_preset(folder / "preset")
    lm.save(folder / "lm.keras")
    yield RGemmaCausalLM.from_preset(folder / "preset")
    yield keras.models.load_model(folder / "lm.keras")


@pytest.mark.parametrize("mode", ["gptq", "awq", "int8"])
def test_what_takes_long_is_said_before(mode):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        calibration.check(tiny.causal_lm(None), mode)
    is_slow = mode == "gptq" and keras.config.backend() == "jax"
    assert ["minutes" in str(warning.message) for warning in caught] == [True] * is_slow


@pytest.fixture(scope="module", params=["gptq", "awq"])
def case(request):
    """The mode, a model, and pairs of a layer's path and what calibration saw go through it."""
    mode, seen = request.param, []
    owner, method = METHODS[mode]
    original = getattr(owner, method)

    def update(self, x):
        seen.append((self.original_layer.path, tiny.numpy(x)))
        assert not getattr(x, "requires_grad", False)  # or PyTorch keeps every sample's graph
        return original(self, x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, method, update)
        # Recomputing would hide from Keras what goes through a layer.
        lm = made(gradient_checkpointing=True)
        lm.quantize(mode, config=config_of(mode, lm))
    return mode, lm, seen


def test_every_plain_linear_layer_sees_every_sample(case):
    _, lm, seen = case
    widths = {x.path: x.weight_shape[0] for x in lm.backbone._flatten_layers() if x.path in PLAIN}
    expected = [(path, (LENGTH, widths[path])) for path in PLAIN for _ in range(SAMPLES)]
    assert sorted((path, x.shape) for path, x in seen) == sorted(expected)


def test_gates_and_embeddings_stay_what_they_were(case):
    mode, lm, *_ = case
    modes = {x.path: getattr(x, "quantization_mode", None) for x in lm.backbone._flatten_layers()}
    assert {path for path, found in modes.items() if found == mode} == PLAIN
    after, kept = {x.path: x for x in lm.backbone.variables}, GATES | {"token_embedding"}
    for before in made().backbone.variables:
        if before.path.rpartition("/")[0] in kept:
            np.testing.assert_array_equal(tiny.numpy(after[before.path]), tiny.numpy(before))


def test_layers_see_what_goes_through_the_model(case):
    """Before anything is rounded: it is the first block."""
    _, _, seen = case
    lm = made()
    (layer,) = lm.backbone.transformer_layers
    windows = gptq_core.get_dataloader(lm.preprocessor.tokenizer, LENGTH, [TEXT], SAMPLES)
    expected = {"linear_x": [], "ffw_up": []}
    for window in windows:
        x = lm.backbone.embed(window)
        expected["linear_x"].append(layer.temporal_pre_norm(x))
        x = x + layer.recurrent_block(expected["linear_x"][-1], np.arange(LENGTH)[None])
        expected["ffw_up"].append(layer.channel_pre_norm(x))
    for name, arrays in expected.items():
        found = [x for path, x in seen if path.endswith(name)]
        np.testing.assert_allclose(
            found, [tiny.numpy(x)[0] for x in arrays], 1e-5, 1e-5, err_msg=name
        )


def test_saved_models_come_back(case, tmp_path):
    _, lm, *_ = case
    expected = lm.generate("The quick", max_new_tokens=4, stop_token_ids=None)
    for loaded in saved_and_loaded(lm, tmp_path):
        np.testing.assert_array_equal(hidden_states(loaded), hidden_states(lm))
        assert loaded.generate("The quick", max_new_tokens=4, stop_token_ids=None) == expected


def test_the_structure_is_the_model():
    lm = tiny.causal_lm(None)
    assert lm.get_quantization_layer_structure("int8") is None
    x = tiny.arrays()
    x["padding_mask"] = np.ones_like(x["padding_mask"])
    (embed,), blocks = lm.get_quantization_layer_structure("awq").values()
    found = embed(x["token_ids"])
    for block in blocks:
        found = block(found)
    found = tiny.numpy(lm.backbone.final_norm(found))
    np.testing.assert_allclose(found, tiny.numpy(lm.backbone(x)), 1e-5, 1e-5)


def test_lora_is_not_counted_twice():
    lm = made()
    lm.backbone.enable_lora(2)
    for model in (lm, lm.backbone):
        with pytest.raises(ValueError, match="merge_lora"):
            model.quantize("gptq", config=config_of("gptq", lm))
    assert not any(getattr(x, "quantization_mode", None) for x in lm._flatten_layers())


def test_what_was_not_calibrated_is_not_saved(tmp_path):
    lm = made()
    with pytest.raises(ValueError, match="empty"):
        lm.quantize("gptq", config=config_of("gptq", lm, dataset=[]))
    with pytest.raises(ValueError, match="quantized by gptq, which failed"):
        lm.save(tmp_path / "lm.keras")


@pytest.mark.parametrize("dtype", ["bfloat16", "mixed_bfloat16"])
def test_the_dtype_of_what_is_not_quantized_comes_back(dtype, tmp_path):
    lm = made(dtype=dtype)
    lm.quantize("int8", filters="ffw_up")
    expected, dtypes = hidden_states(lm), [x.dtype for x in lm.backbone.variables]
    for loaded in saved_and_loaded(lm, tmp_path):
        assert [x.dtype for x in loaded.backbone.variables] == dtypes
        np.testing.assert_array_equal(hidden_states(loaded), expected)
