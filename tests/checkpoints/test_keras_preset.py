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
    edit(folder, **{name: 10**8})
    with pytest.raises(ValueError, match=r"asks for [\d,]+ parameters, but the weights are"):
        cls.from_preset(folder)
    edit(folder, **{name: 10**13})
    for load_weights in (True, False):
        with pytest.raises(ValueError, match=r"more than 1e\+13 parameters"):
            cls.from_preset(folder, load_weights=load_weights)
    edit(folder, **{name: tiny.SIZES[name], "num_layers": 1})
    with pytest.raises(ValueError, match="asks for 1 layers, but the weights hold 2"):
        cls.from_preset(folder)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_weights_that_are_not_finite_are_refused(cls, value, tmp_path):
    # Large enough for XLA to vectorise what looks through it.
    lm = tiny.causal_lm(intermediate_dim=4000)
    kernel = lm.backbone.transformer_layers[1].mlp_block.ffw_down.kernel
    array = tiny.numpy(kernel).copy()
    array[3003, 2] = value
    kernel.assign(array)
    lm.save_to_preset(tmp_path / "preset")
    with pytest.raises(ValueError, match=r"block_1/mlp_block/ffw_down/kernel. holds NaN"):
        cls.from_preset(tmp_path / "preset")


@pytest.mark.parametrize("cls", CLASSES)
def test_a_file_that_was_cut_is_refused(cls, folder):
    file = folder / "model.weights.h5"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"model\.weights\.h5' cannot be read.*truncated"):
        cls.from_preset(folder)


@pytest.mark.parametrize("cls", CLASSES)
def test_the_next_model_begins_with_random_weights_again(cls, folder):
    (folder / "model.weights.h5").unlink()
    with pytest.raises(ValueError, match=r"preset' holds no model\.weights\.h5"):
        cls.from_preset(folder)
    embeddings = tiny.backbone().token_embedding.embeddings
    assert np.abs(tiny.numpy(embeddings)).max() > 0.1


@pytest.mark.parametrize("cls", CLASSES)
def test_configs_that_are_no_configs_are_named(cls, folder):
    whole = (folder / "config.json").read_text()
    for content in ("{}", "[]", '{"config": null}', "", "[" * 200_000, '{"config": {}}'):
        (folder / "config.json").write_text(content)
        with pytest.raises(ValueError, match=r"config\.json'"):
            cls.from_preset(folder)
    (folder / "config.json").write_text(whole)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json' describes no Keras object"):
        cls.from_preset(folder)


@pytest.mark.parametrize("cls", CLASSES)
def test_what_is_no_checkpoint_is_told_what_is_one(cls, tmp_path):
    (tmp_path / "file.txt").write_text("text")
    (tmp_path / "empty").mkdir()
    for name in ("file.txt", "empty"):
        with pytest.raises(ValueError, match=rf"{name}' holds no checkpoint.*Orbax.*`\.pt`"):
            cls.from_preset(tmp_path / name)


@pytest.mark.parametrize("content", [b"", b"no model"])
def test_a_broken_vocabulary_is_named(folder, content):
    (folder / "assets" / "tokenizer" / "vocabulary.spm").write_bytes(content)
    for cls in (keras_rgemma.RGemmaCausalLM, keras_rgemma.RGemmaTokenizer):
        with pytest.raises(ValueError, match="cannot be read as a SentencePiece model"):
            cls.from_preset(folder)


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_a_model_that_was_trained_in_mixed_precision(dtype, tmp_path):
    lm = tiny.causal_lm(dtype=dtype)
    lm.save_to_preset(tmp_path / "preset")
    for cls in CLASSES:
        loaded = cls.from_preset(tmp_path / "preset")
        assert loaded.dtype_policy.name == "float32"
        for weight, expected in zip(loaded.weights, lm.weights, strict=True):
            np.testing.assert_array_equal(tiny.numpy(weight), tiny.numpy(expected))
        assert cls.from_preset(tmp_path / "preset", dtype=dtype).compute_dtype == lm.compute_dtype


def test_settings_of_the_backbone_take_the_place_of_the_preset_s(tmp_path):
    lm = tiny.randomize(tiny.causal_lm())
    lm.save_to_preset(tmp_path)
    for dtype in (None, "bfloat16"):
        loaded = keras_rgemma.RGemmaCausalLM.from_preset(
            str(tmp_path), dtype=dtype, gradient_checkpointing=True, final_logit_soft_cap=None
        )
        assert loaded.backbone.gradient_checkpointing
        assert loaded.backbone.token_embedding.logit_soft_cap is None
        assert loaded.dtype_policy.name == (dtype or "float32")
        assert loaded.preprocessor.tokenizer.vocabulary_size() == 400
        for weight, expected in zip(loaded.weights, lm.weights, strict=True):
            np.testing.assert_allclose(tiny.numpy(weight), tiny.numpy(expected), rtol=2**-8)
    bare = keras_rgemma.RGemmaCausalLM.from_preset(str(tmp_path), dropout=0.5, preprocessor=None)
    assert bare.preprocessor is None and bare.backbone.dropout == 0.5


def edit_one(folder, name, **changes):
    """Changes the architecture in one of the two files that hold it."""
    contents = json.loads((folder / name).read_text())
    part = contents if name == "config.json" else contents["config"]["backbone"]
    for field, value in changes.items():
        part["config"].pop(field) if value == "gone" else part["config"].update({field: value})
    (folder / name).write_text(json.dumps(contents))


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("file", ["config.json", "task.json"])
@pytest.mark.parametrize(
    "field, value, was",
    [
        ("num_layers", 9, "2"),
        ("sliding_window_size", 7, "5"),
        ("activation", "silu", "'gelu_tanh'"),
        ("final_logit_soft_cap", "gone", "30.0"),  # the same as the default
        ("scale_embeddings", False, "True"),
        ("block_types", ["attention"], r"\['recurrent', 'attention'\]"),
        ("trainable", False, "True"),
    ],
)
def test_two_files_that_disagree(cls, file, field, value, was, folder):
    edit_one(folder, file, **{field: value})
    if value == "gone":
        cls.from_preset(folder)
        return
    one, other = (repr(value), was) if file == "config.json" else (was, repr(value))
    one, other = (x.replace("['attention']", r"\['attention'\]") for x in (one, other))
    message = rf"'{field}' is {one} in config\.json and {other} in task\.json"
    for load_weights in (True, False):
        with pytest.raises(ValueError, match=message):
            cls.from_preset(folder, load_weights)


@pytest.mark.parametrize("cls", CLASSES)
def test_more_layers_than_the_weights_hold(cls, folder):
    edit(folder, num_layers=3)
    with pytest.raises(ValueError, match="asks for 3 layers, but the weights hold 2"):
        cls.from_preset(folder)
    assert cls.from_preset(folder, load_weights=False)
