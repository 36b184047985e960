"""Configs, files and presets: what is revived is the same model, and computes the same."""

import dataclasses
import inspect
import json
import pathlib
import pickle

import keras
import keras_hub
import numpy as np
import pytest

import keras_rgemma
import tiny
from keras_rgemma.config import RGemmaConfig
from keras_rgemma.layers.block_diagonal import BlockDiagonal
from keras_rgemma.layers.causal_conv1d import CausalConv1D
from keras_rgemma.layers.document_places import DocumentPlaces
from keras_rgemma.layers.document_positions import DocumentPositions
from keras_rgemma.layers.embedding import ReversibleEmbedding
from keras_rgemma.layers.gated_mlp import GatedMLP
from keras_rgemma.layers.linear import Linear
from keras_rgemma.layers.local_attention import LocalAttention
from keras_rgemma.layers.recurrent_block import RecurrentBlock
from keras_rgemma.layers.residual_block import ResidualBlock
from keras_rgemma.layers.rg_lru import RGLRU, RecurrenceInitializer
from keras_rgemma.layers.rms_norm import RMSNorm

PROMPT = "The quick"
# No argument keeps its default: one that get_config forgets would come back as another value.
EVERYTHING = {
    "vocabulary_size": 400,
    "num_layers": 2,
    "hidden_dim": 24,
    "intermediate_dim": 20,
    "num_query_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "lru_dim": 12,
    "block_types": ["attention", "recurrent"],
    "sliding_window_size": 3,
    "conv_width": 2,
    "final_logit_soft_cap": None,
    "scale_embeddings": False,
    "rope_max_wavelength": 500,
    "rope_fraction": 0.25,
    "activation": "silu",
    "layer_norm_epsilon": 1e-3,
    "dropout": 0.25,
    "gradient_checkpointing": True,
}


ATTRIBUTES = {}  # of the objects in the fixture `lm`, before their first use


@pytest.fixture(scope="module")
def lm():
    keras.utils.set_random_seed(0)
    lm = tiny.randomize(tiny.causal_lm())
    lm.preprocessor(["a"])  # KerasHub makes its packer here
    for o in (lm, lm.preprocessor.tokenizer, *lm._flatten_layers()):
        ATTRIBUTES[id(o)] = set(vars(o))
    return lm


@pytest.fixture(scope="module")
def answer(lm):
    return lm.generate(PROMPT, max_new_tokens=6, stop_token_ids=None)


@pytest.fixture(scope="module")
def folder(lm, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("presets") / "preset")
    lm.save_to_preset(path)
    return path


def outputs(model):
    return tiny.numpy(model(tiny.arrays()))


def assert_same_weights(model, other, dtype=None):
    assert [w.path for w in model.weights] == [w.path for w in other.weights]
    for weight, expected in zip(model.weights, other.weights, strict=True):
        expected = tiny.numpy(expected)
        if dtype is not None:
            assert keras.backend.standardize_dtype(weight.dtype) == dtype
            expected = expected.astype(dtype)
        np.testing.assert_array_equal(tiny.numpy(weight), expected, err_msg=weight.path)


def as_json(config):
    return json.loads(json.dumps(config))


# === Configs ===


def test_every_argument_of_a_backbone_is_tried_with_another_value():
    parameters = inspect.signature(keras_rgemma.RGemmaBackbone.__init__).parameters
    assert set(EVERYTHING) == set(parameters) - {"self", "dtype", "kwargs"}
    assert set(EVERYTHING) == {field.name for field in dataclasses.fields(RGemmaConfig)}
    for name, value in EVERYTHING.items():
        assert parameters[name].default != value


def test_configs_of_a_backbone_survive_a_round_trip():
    backbone = keras_rgemma.RGemmaBackbone(**EVERYTHING, name="mine", trainable=False)
    config = backbone.get_config()
    assert {key: config[key] for key in EVERYTHING} == EVERYTHING
    assert (config["name"], config["trainable"]) == ("mine", False)
    for name, value in EVERYTHING.items():
        kept = getattr(backbone, name)
        assert (list(kept) if name == "block_types" else kept) == value
    revived = keras_rgemma.RGemmaBackbone.from_config(as_json(config))
    assert revived.get_config() == config
    assert revived.config == backbone.config
    assert [w.path for w in revived.weights] == [w.path for w in backbone.weights]
    assert set(dir(revived)) == set(dir(backbone))
    serialized = as_json(keras.saving.serialize_keras_object(backbone))
    assert serialized["registered_name"] == "keras_rgemma>RGemmaBackbone"
    revived = keras.saving.deserialize_keras_object(serialized)
    assert type(revived) is keras_rgemma.RGemmaBackbone
    assert revived.get_config() == config


def test_configs_of_a_causal_lm_survive_a_round_trip(lm):
    config = lm.get_config()
    revived = keras_rgemma.RGemmaCausalLM.from_config(as_json(config))
    assert as_json(revived.get_config()) == as_json(config)
    assert revived.preprocessor.sequence_length == lm.preprocessor.sequence_length
    assert set(dir(revived)) == set(dir(lm))
    serialized = as_json(keras.saving.serialize_keras_object(lm))
    assert serialized["registered_name"] == "keras_rgemma>RGemmaCausalLM"
    revived = keras.saving.deserialize_keras_object(serialized)
    assert type(revived) is keras_rgemma.RGemmaCausalLM
    assert type(revived.backbone) is keras_rgemma.RGemmaBackbone
    assert as_json(revived.get_config()) == as_json(config)


def test_a_causal_lm_without_a_preprocessor_survives_a_round_trip(lm):
    bare = keras_rgemma.RGemmaCausalLM(lm.backbone)
    revived = keras_rgemma.RGemmaCausalLM.from_config(as_json(bare.get_config()))
    assert revived.preprocessor is None


@pytest.mark.parametrize(
    "cls, config",
    [
        (RGemmaConfig, EVERYTHING),
        (keras_rgemma.RGemmaBackbone, EVERYTHING),
    ],
)
def test_unknown_arguments_are_refused(cls, config):
    with pytest.raises((TypeError, ValueError), match="conv_widht"):
        cls(**config, conv_widht=4)


def test_unknown_keys_in_a_saved_config_are_refused(lm):
    config = {**lm.backbone.get_config(), "number_of_experts": 4}
    with pytest.raises((TypeError, ValueError), match="number_of_experts"):
        keras_rgemma.RGemmaBackbone.from_config(config)


def test_unknown_arguments_of_a_causal_lm_are_refused(lm, folder):
    with pytest.raises((TypeError, ValueError), match="sequence_lenght"):
        keras_rgemma.RGemmaCausalLM(lm.backbone, sequence_lenght=4)
    with pytest.raises((TypeError, ValueError), match="sequence_lenght"):
        keras_rgemma.RGemmaCausalLM.from_preset(folder, sequence_lenght=4)


# === Layers ===

RECURRENT = {"lru_dim": 24, "num_blocks": 2, "conv_width": 3, "activation": "relu"}
ATTENTION = {
    "num_query_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "sliding_window_size": 3,
    "rope_max_wavelength": 100.0,
    "rotated_size": 2,
    "output_variance": 0.5,
}
MLP = {"intermediate_dim": 12, "activation": "gelu", "output_variance": 0.25}
BLOCK = {"mlp": MLP, "layer_norm_epsilon": 1e-4, "dropout": 0.5}
EINSUM = {"equation": "bti,ij->btj", "output_shape": (None, 24), "bias_axes": "j"}
LAYERS = {
    "BlockDiagonal": [(BlockDiagonal, EINSUM)],
    "CausalConv1D": [(CausalConv1D, {"width": 3})],
    "DocumentPlaces": [(DocumentPlaces, {"rope": [100.0, 4]})],
    "DocumentPositions": [(DocumentPositions, {})],
    "GatedMLP": [(GatedMLP, MLP)],
    "ReversibleEmbedding": [(ReversibleEmbedding, {"input_dim": 9, "output_dim": 24})],
    "Linear": [(Linear, {"units": 24, "use_bias": False})],
    "LocalAttention": [(LocalAttention, ATTENTION)],
    "RGLRU": [(RGLRU, {"num_blocks": 2})],
    "RMSNorm": [(RMSNorm, {"epsilon": 1e-4})],
    "RecurrentBlock": [(RecurrentBlock, {**RECURRENT, "output_variance": 0.5})],
    "ResidualBlock": [
        (ResidualBlock, {"block_type": "recurrent", "temporal": RECURRENT, **BLOCK}),
        (ResidualBlock, {"block_type": "attention", "temporal": ATTENTION, **BLOCK}),
    ],
}
CASES = [case for cases in LAYERS.values() for case in cases]


def test_every_registered_layer_is_in_the_table():
    registered = {
        name.split(">")[1]: value
        for name, value in keras.saving.get_custom_objects().items()
        if name.startswith("keras_rgemma>")
    }
    layers = {
        name
        for name, cls in registered.items()
        if issubclass(cls, keras.Layer) and cls.__module__.startswith("keras_rgemma.layers")
    }
    assert layers == set(LAYERS)


@pytest.mark.parametrize("cls, arguments", CASES)
def test_configs_of_layers_survive_a_round_trip(cls, arguments):
    layer = cls(**arguments, name="mine", dtype="mixed_bfloat16", trainable=False)
    config = layer.get_config()
    assert {key: config[key] for key in arguments} == arguments
    revived = cls.from_config(as_json(config))
    assert revived.get_config() == config
    assert revived.dtype_policy.name == "mixed_bfloat16"
    serialized = as_json(keras.saving.serialize_keras_object(layer))
    assert serialized["registered_name"] == f"keras_rgemma>{cls.__name__}"
    assert keras.saving.deserialize_keras_object(serialized).get_config() == config
    assert set(dir(revived)) == set(dir(layer))


@pytest.mark.parametrize("cls, arguments", CASES)
def test_revived_layers_have_the_same_weights_and_attributes(cls, arguments):
    layer, shape = cls(**arguments), (2, 7, 24)
    revived = cls.from_config(as_json(layer.get_config()))
    layer.build(shape)
    revived.build(shape)
    assert [(w.path, w.shape) for w in revived.weights] == [
        (w.path, w.shape) for w in layer.weights
    ]
    assert set(vars(revived)) == set(vars(layer))


@pytest.mark.parametrize("cls, arguments", CASES)
def test_layers_refuse_unknown_arguments(cls, arguments):
    with pytest.raises((TypeError, ValueError), match="widht"):
        cls(**arguments, widht=4)


def test_the_initializer_of_the_decay_survives_a_round_trip():
    initializer = RecurrenceInitializer(seed=3)
    config = as_json(initializer.get_config())
    revived = RecurrenceInitializer.from_config(config)
    assert revived.get_config() == config
    expected = tiny.numpy(initializer((24,)))
    np.testing.assert_array_equal(tiny.numpy(revived((24,))), expected)
    # The squared radius lies where the paper wants it.
    square = np.exp(-2 * np.log1p(np.exp(expected)))
    assert ((square > 0.9**2) & (square < 0.999**2)).all()


# === Files ===


def test_keras_files_are_exact(lm, answer, tmp_path):
    lm.save(tmp_path / "lm.keras")
    loaded = keras.saving.load_model(tmp_path / "lm.keras")
    assert type(loaded) is keras_rgemma.RGemmaCausalLM
    assert_same_weights(loaded, lm)
    np.testing.assert_array_equal(outputs(loaded), outputs(lm))
    assert loaded.preprocessor.sequence_length == lm.preprocessor.sequence_length
    assert loaded.preprocessor.tokenizer.end_token2_id == 5
    assert loaded.generate(PROMPT, max_new_tokens=6, stop_token_ids=None) == answer
    assert len(answer) > len(PROMPT)


def test_keras_files_of_a_backbone_are_exact(lm, tmp_path):
    lm.backbone.save(tmp_path / "backbone.keras")
    loaded = keras.saving.load_model(tmp_path / "backbone.keras")
    assert type(loaded) is keras_rgemma.RGemmaBackbone
    assert loaded.config == lm.backbone.config
    assert_same_weights(loaded, lm.backbone)
    np.testing.assert_array_equal(outputs(loaded), outputs(lm.backbone))


def test_weight_files_are_exact(lm, tmp_path):
    path = str(tmp_path / "lm.weights.h5")
    lm.save_weights(path)
    other = tiny.causal_lm()
    other.load_weights(path)
    assert_same_weights(other, lm)


def test_pickles_are_exact(lm):
    for model in (lm, lm.backbone):
        copy = pickle.loads(pickle.dumps(model))
        assert type(copy) is type(model)
        assert_same_weights(copy, model)


def test_a_cloned_backbone_computes_the_same(lm):
    # As in KerasHub, the clone of a backbone is a plain functional model.
    clone = keras.models.clone_model(lm.backbone)
    clone.set_weights(lm.backbone.get_weights())
    np.testing.assert_array_equal(outputs(clone), outputs(lm.backbone))


# === Preset folders ===


def test_a_preset_folder_revives_the_causal_lm(lm, folder):
    for cls in (keras_rgemma.RGemmaCausalLM, keras_hub.models.CausalLM):
        loaded = cls.from_preset(folder)
        assert type(loaded) is keras_rgemma.RGemmaCausalLM
        assert loaded.backbone.config == lm.backbone.config
        assert_same_weights(loaded, lm)
        assert loaded.preprocessor.prompt_token_ids([PROMPT])[0].tolist() == (
            lm.preprocessor.prompt_token_ids([PROMPT])[0].tolist()
        )
    np.testing.assert_array_equal(outputs(loaded), outputs(lm))


def test_a_preset_folder_revives_the_backbone(lm, folder):
    for cls in (keras_rgemma.RGemmaBackbone, keras_hub.models.Backbone):
        loaded = cls.from_preset(folder)
        assert type(loaded) is keras_rgemma.RGemmaBackbone
        assert_same_weights(loaded, lm.backbone)
    np.testing.assert_array_equal(outputs(loaded), outputs(lm.backbone))


def test_a_preset_folder_revives_tokenizer_and_preprocessor(lm, folder):
    expected = list(lm.preprocessor.tokenizer(PROMPT))
    for cls in (keras_rgemma.RGemmaTokenizer, keras_hub.models.Tokenizer):
        loaded = cls.from_preset(folder)
        assert type(loaded) is keras_rgemma.RGemmaTokenizer
        assert list(loaded(PROMPT)) == expected
        assert loaded.end_token2_id == 5
    for cls in (keras_rgemma.RGemmaCausalLMPreprocessor, keras_hub.models.CausalLMPreprocessor):
        loaded = cls.from_preset(folder, sequence_length=5)
        assert type(loaded) is keras_rgemma.RGemmaCausalLMPreprocessor
        assert loaded.sequence_length == 5
        assert list(loaded.tokenizer(PROMPT)) == expected


def test_a_preset_folder_without_its_weights(lm, folder):
    loaded = keras_rgemma.RGemmaCausalLM.from_preset(folder, load_weights=False)
    assert loaded.backbone.config == lm.backbone.config
    ours, theirs = (m.backbone.token_embedding.embeddings for m in (loaded, lm))
    assert np.abs(tiny.numpy(ours) - tiny.numpy(theirs)).max() > 0.1


def test_parts_of_a_preset_can_be_replaced(folder):
    assert keras_rgemma.RGemmaCausalLM.from_preset(folder, preprocessor=None).preprocessor is None
    own = tiny.preprocessor(7)
    assert keras_rgemma.RGemmaCausalLM.from_preset(folder, preprocessor=own).preprocessor is own


def test_a_path_is_as_good_as_a_str(lm, folder):
    loaded = keras_rgemma.RGemmaCausalLM.from_preset(pathlib.Path(folder))
    assert_same_weights(loaded, lm)


def test_the_metadata_of_a_preset_folder(lm, folder):
    # KerasHub lists on its hub which tasks a preset serves from here.
    metadata = json.loads((pathlib.Path(folder) / "metadata.json").read_text())
    assert metadata["parameter_count"] == lm.backbone.config.parameter_count
    assert metadata["parameter_count"] == lm.count_params()
    assert metadata["tasks"] == ["CausalLM"]


def test_another_dtype_on_loading_and_back(lm, folder, tmp_path):
    half = keras_rgemma.RGemmaCausalLM.from_preset(folder, dtype="float16")
    assert half.backbone.compute_dtype == half.compute_dtype == "float16"
    assert_same_weights(half, lm, dtype="float16")
    half.save_to_preset(str(tmp_path / "half"))
    # Without a dtype, float weights come in the default one, as in KerasHub.
    for cls in (keras_rgemma.RGemmaCausalLM, keras_rgemma.RGemmaBackbone):
        loaded = cls.from_preset(str(tmp_path / "half"))
        assert loaded.compute_dtype == "float32"
        assert {keras.backend.standardize_dtype(w.dtype) for w in loaded.weights} == {"float32"}
        for weight, expected in zip(loaded.weights, half.weights, strict=True):
            np.testing.assert_array_equal(tiny.numpy(weight), tiny.numpy(expected))


# === Hooks, attributes, variables ===


def test_use_adds_no_attributes_and_no_variables(lm, answer):
    # All tests above have used this model, too.
    paths = [variable.path for variable in tiny.causal_lm().variables]
    lm(tiny.arrays())
    lm.score(tiny.arrays()["token_ids"])
    for o in (lm, lm.preprocessor.tokenizer, *lm._flatten_layers()):
        assert set(vars(o)) == ATTRIBUTES[id(o)], o.name
    assert [variable.path for variable in lm.variables] == paths
    assert len({id(variable) for variable in lm.variables}) == len(paths)
    assert len(lm.weights) == len(lm.backbone.weights)  # the embedding is tied


def test_the_parameter_count_is_known_without_a_model(lm):
    assert lm.backbone.count_params() == lm.backbone.config.parameter_count
    backbone = keras_rgemma.RGemmaBackbone(**EVERYTHING)
    assert backbone.count_params() == backbone.config.parameter_count


def test_hooks_of_keras_hub(lm):
    backbone = lm.backbone
    assert isinstance(backbone.token_embedding, keras.layers.ReversibleEmbedding)
    assert [type(layer) for layer in backbone.transformer_layers] == [ResidualBlock] * 2
    block_types = [layer.block_type for layer in backbone.transformer_layers]
    assert block_types == ["recurrent", "attention"]
    assert [layer.name for layer in backbone.transformer_layers] == ["block_0", "block_1"]
    x = np.random.RandomState(0).normal(size=(2, 7, 16)).astype("float32")
    positions = np.tile(np.arange(7, dtype="int32"), (2, 1))
    for layer in backbone.transformer_layers:
        alone, told = layer(x), layer(x, keras.ops.convert_to_tensor(positions))
        np.testing.assert_array_equal(tiny.numpy(alone), tiny.numpy(told))
        assert np.abs(tiny.numpy(alone) - x).max() > 0.01


def test_logits_are_capped_once(lm):
    hidden = tiny.numpy(lm.backbone(tiny.arrays()))
    raw = hidden @ tiny.numpy(lm.backbone.token_embedding.embeddings).T
    # Float32 products of 16 terms, summed in another order.
    np.testing.assert_allclose(outputs(lm), 30 * np.tanh(raw / 30), atol=1e-4)


def test_summaries_name_the_parts(lm):
    lines = []
    lm.summary(print_fn=lines.append)
    text = "\n".join(lines)
    for name in ("r_gemma_tokenizer", "RGemmaBackbone", "token_embedding", "13,280"):
        assert name in text
    assert lm.count_params() == 13_280


def test_lora_of_the_embedding_is_merged_into_a_preset_and_stays_in_the_model(tmp_path):
    lm = tiny.causal_lm()
    lm.backbone.enable_lora(4)
    lm.backbone.token_embedding.enable_lora(2)
    tiny.randomize(lm)
    ids = tiny.arrays()["token_ids"]
    expected = tiny.numpy(lm.score(ids))
    lm.save_to_preset(tmp_path / "preset")
    found = keras_rgemma.RGemmaCausalLM.from_preset(tmp_path / "preset")
    paths = [{weight.path for weight in model.weights} for model in (lm, found)]
    names = {"token_embedding/lora_embeddings_a", "token_embedding/lora_embeddings_b"}
    assert paths[0] - paths[1] == names and not paths[1] - paths[0]
    # Products with merged weights are other sums in float32.
    np.testing.assert_allclose(tiny.numpy(found.score(ids)), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(tiny.numpy(lm.score(ids)), expected)


def test_saving_over_a_preset_keeps_other_files(lm, tmp_path):
    folder = tmp_path / "preset"
    for _ in range(2):
        lm.save_to_preset(folder)
        (folder / "notes.txt").write_text("mine")
    assert (folder / "notes.txt").exists() and (folder / "task.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["preset"]
    lm.save_to_preset(folder, max_shard_size=3e-5)  # whose weights are read, and not the old ones
    assert not (folder / "model.weights.h5").exists()
    assert len(list(folder.glob("model_*.weights.h5"))) > 1
    found = keras_rgemma.RGemmaCausalLM.from_preset(folder)
    for one, other in zip(found.weights, lm.weights, strict=True):
        np.testing.assert_array_equal(tiny.numpy(one), tiny.numpy(other))


def test_a_preset_of_a_backbone_alone_is_a_model_without_a_preprocessor(lm, tmp_path):
    lm.backbone.save_to_preset(tmp_path / "preset")
    assert [path.name for path in tmp_path.iterdir()] == ["preset"]
    assert keras_rgemma.RGemmaCausalLM.from_preset(tmp_path / "preset").preprocessor is None
