"""`from_preset(quantize=)` gives the weights of `quantize` after loading, one after the other."""

import weakref

import keras
import numpy as np
import pytest

import tiny
from backend_independent import backend_independent
from compiled import compiled
from keras_rgemma import RGemmaBackbone, RGemmaCausalLM
from keras_rgemma.checkpoints import export, rounding
from keras_rgemma.layers import embedding as embedding_layer
from keras_rgemma.layers import rounded
from keras_rgemma.layers.embedding import ReversibleEmbedding
from keras_rgemma.lora.backbone import lora_layers_by_path

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have a `quantize` method:UserWarning"),
]
# One layer of each kind; several groups of 128 a row in int4, the last one cut.
SIZES = {"hidden_dim": 272, "intermediate_dim": 36, "lru_dim": 24, "head_dim": 8}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model in each form."""
    root = tmp_path_factory.mktemp("forms")
    lm = tiny.randomize(tiny.causal_lm(**SIZES))
    for form in export.TARGETS:
        if form == "transformers":  # which has no `head_dim`
            other = tiny.randomize(tiny.causal_lm(**{**SIZES, "head_dim": None, "lru_dim": None}))
            other.export_to_transformers(root / form)
        else:
            export.export(lm.backbone, lm.preprocessor.tokenizer, root / form, form)
    lm.save_to_preset(root / "keras")
    return root


def check_same(found, expected):
    """The same weights and config."""
    assert len(found.weights) == len(expected.weights)
    others = {weight.path: weight for weight in expected.weights}
    for weight in found.weights:
        other = others[weight.path]
        assert (weight.dtype, weight.trainable) == (other.dtype, other.trainable), weight.path
        np.testing.assert_array_equal(tiny.numpy(weight), tiny.numpy(other), err_msg=weight.path)
    assert found.get_config() == {**expected.get_config(), "name": found.name}


def check_same_layers(found, expected):
    """The same weights, config, classes and policies."""
    check_same(found, expected)
    policies = [
        [(type(x), x.dtype_policy.name, x.quantization_mode) for x in model._flatten_layers()]
        for model in (found, expected)
    ]
    assert policies[0] == policies[1]


@pytest.mark.parametrize("mode", rounding.MODES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_weights_are_those_of_quantize(mode, dtype, folders, monkeypatch):
    monkeypatch.setattr(embedding_layer, "_ROUNDED_ELEMENTS", 272 * 150)  # several blocks
    folder = folders / "transformers"
    expected = RGemmaCausalLM.from_preset(folder, dtype=dtype)
    expected.quantize(mode)
    found = RGemmaCausalLM.from_preset(folder, dtype=dtype, quantize=mode)
    check_same_layers(found.backbone, expected.backbone)
    ids = tiny.arrays()["token_ids"]
    np.testing.assert_array_equal(tiny.numpy(found.score(ids)), tiny.numpy(expected.score(ids)))


@pytest.mark.parametrize("mode", rounding.MODES)
def test_it_is_saved_trained_and_loaded_as_any_other(mode, folders, tmp_path):
    lm = RGemmaCausalLM.from_preset(folders / "transformers", quantize=mode)
    lm.save_to_preset(tmp_path / "preset")
    check_same(RGemmaBackbone.from_preset(tmp_path / "preset"), lm.backbone)
    with pytest.raises(ValueError, match="quantized already, to"):
        RGemmaCausalLM.from_preset(tmp_path / "preset", quantize=mode)
    lm.backbone.enable_lora(2)
    lm.fit(["The quick brown fox."], batch_size=1, verbose=0)
    lm.export_to_peft(tmp_path / "adapter", base_model=str(folders / "transformers"))
    found = RGemmaCausalLM.from_preset(tmp_path / "adapter", quantize=mode)  # QLoRA goes on
    assert len(lora_layers_by_path(found.backbone)) == len(tiny.LINEAR)
    check_same(found.backbone, lm.backbone)


@backend_independent
@pytest.mark.parametrize("mode", rounding.MODES)
@pytest.mark.parametrize("form", ["flax", "torch", "keras"])
def test_other_formats(mode, form, folders):
    expected = RGemmaBackbone.from_preset(folders / form)
    expected.quantize(mode)
    check_same_layers(RGemmaBackbone.from_preset(folders / form, quantize=mode), expected)


@pytest.mark.parametrize("mode", rounding.MODES)
@pytest.mark.parametrize("dtype", ["bfloat16", "mixed_bfloat16", "map"])
def test_a_keras_preset_in_every_dtype(mode, dtype, folders):
    policy = dtype
    if dtype == "map":
        policy = keras.dtype_policies.DTypePolicyMap("bfloat16")
        policy["token_embedding"] = "float32"
    expected = RGemmaCausalLM.from_preset(folders / "keras", dtype=policy)
    expected.quantize(mode)
    found = RGemmaCausalLM.from_preset(folders / "keras", dtype=policy, quantize=mode)
    check_same_layers(found.backbone, expected.backbone)
    ids = tiny.arrays()["token_ids"]
    np.testing.assert_array_equal(tiny.numpy(found.score(ids)), tiny.numpy(expected.score(ids)))


@pytest.mark.parametrize("mode", rounding.MODES)
def test_a_keras_preset_with_lora_in_several_files(mode, tmp_path):
    lm = tiny.randomize(tiny.causal_lm(**SIZES))
    lm.backbone.enable_lora(2)
    for layer in lora_layers_by_path(lm.backbone).values():
        layer.lora_kernel_b.assign(np.full(layer.lora_kernel_b.shape, 0.1))
    lm.save_to_preset(tmp_path / "preset", max_shard_size=5e-4)
    assert len(list((tmp_path / "preset").glob("model*.weights.h5"))) > 1
    expected = RGemmaCausalLM.from_preset(tmp_path / "preset")
    expected.quantize(mode)
    found = RGemmaCausalLM.from_preset(tmp_path / "preset", quantize=mode)
    assert len(lora_layers_by_path(found.backbone)) == len(tiny.LINEAR)
    check_same_layers(found.backbone, expected.backbone)


@pytest.mark.parametrize("mode", rounding.MODES)
def test_a_file_of_floats_fits_a_rounded_model(mode, tmp_path):
    lm = tiny.randomize(tiny.causal_lm(**SIZES))
    lm.save_weights(tmp_path / "float.weights.h5")
    found = tiny.causal_lm(**SIZES)
    found.quantize(mode)
    found.load_weights(tmp_path / "float.weights.h5")
    lm.quantize(mode)
    check_same(found.backbone, lm.backbone)


@pytest.mark.parametrize("mode", rounding.MODES)
def test_a_file_of_floats_that_does_not_fit_is_refused(mode, tmp_path):
    tiny.backbone().save_weights(tmp_path / "float.weights.h5")
    for rows in (390, 410, 800):
        found = tiny.backbone(vocabulary_size=rows)
        found.quantize(mode)
        before = tiny.numpy(found.weights[0])
        with pytest.raises(ValueError, match=rf"token_embedding' has a matrix .*{rows}.* the file"):
            found.load_weights(tmp_path / "float.weights.h5")
        found.load_weights(tmp_path / "float.weights.h5", skip_mismatch=True)
        np.testing.assert_array_equal(tiny.numpy(found.weights[0]), before)


@pytest.mark.parametrize("mode", rounding.MODES)
@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize("path", ["token_embedding/embeddings", "block_0/mlp_block/ffw_up/kernel"])
def test_a_keras_preset_with_infinity_is_refused(mode, value, path, tmp_path):
    backbone = tiny.backbone()
    (weight,) = (x for x in backbone.weights if x.path == path)
    array = tiny.numpy(weight).copy()
    array[3, 2] = value
    weight.assign(array)
    backbone.save_to_preset(tmp_path / "preset")
    with pytest.raises(ValueError, match=f"'{path}' holds NaN or infinity"):
        RGemmaBackbone.from_preset(tmp_path / "preset", quantize=mode)


@pytest.mark.parametrize("form", ["transformers", "keras"])
def test_no_matrix_stays_when_the_next_is_read(form, folders, monkeypatch):
    made, initialize = [], rounded.initialize

    def initialized(variable, value):
        assert not [x() for x in made if x() is not None]
        initialize(variable, value)
        made.append(weakref.ref(variable))

    monkeypatch.setattr(rounded, "initialize", initialized)
    RGemmaBackbone.from_preset(folders / form, quantize="int8")
    assert len(made) == len(tiny.LINEAR) + 1


@backend_independent
@pytest.mark.parametrize("cls", [RGemmaCausalLM, RGemmaBackbone])
def test_what_it_may_be(cls, folders):
    for mode in ("float8", "gptq", True, 8):
        with pytest.raises(ValueError, match=r"`quantize` must be one of.*its method `quantize`"):
            cls.from_preset(folders / "transformers", quantize=mode)
    with pytest.raises(ValueError, match=r"With `quantize` the dtype must be a plain one"):
        cls.from_preset(folders / "transformers", quantize="int8", dtype="int8_from_float32")
    model = cls.from_preset(folders / "transformers", False, quantize="int8")
    backbone = getattr(model, "backbone", model)
    assert backbone.token_embedding.quantization_mode == "int8"


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="graphs of TensorFlow")
@pytest.mark.parametrize("mode", rounding.MODES)
def test_no_weight_becomes_floats_before_its_layer_is_reached(mode):
    import tensorflow as tf

    lm = tiny.causal_lm(None)
    lm.quantize(mode)
    ids = tf.TensorSpec((1, 5), "int32")
    function = tf.function(lambda x: lm({"token_ids": x, "padding_mask": x}))
    graph = function.get_concrete_function(ids)
    small = (tf.int8, tf.uint8)
    read = [
        x
        for x in graph.graph.get_operations()
        if x.type == "ReadVariableOp" and x.outputs[0].dtype in small
    ]
    assert len(read) >= len(tiny.LINEAR) and all(x.control_inputs for x in read)


# === The rounded embedding, some rows at a time ===


def embeddings(mode, dtype, rows, dim, block_size):
    """Keras' layer and ours with the same rounded weights."""
    config = rounded.rounding_config(mode, block_size)
    layers = [
        cls(rows, dim, logit_soft_cap=3.0, dtype=dtype, embeddings_initializer="normal")
        for cls in (keras.layers.ReversibleEmbedding, ReversibleEmbedding)
    ]
    for layer in layers:
        layer.build()
        layer.embeddings.assign(np.random.RandomState(0).normal(size=(rows, dim)))
        layer.quantize(mode, config=config)
    return layers


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "mixed_bfloat16"])
@pytest.mark.parametrize("rows", [1, 7, 10, 25])
@pytest.mark.parametrize("mode, block_size", [("int4", 4), ("int4", -1), ("int8", -1)])
@pytest.mark.filterwarnings("ignore:The use of `x.T` on tensors of dimension other than 2")
def test_an_embedding_in_blocks_is_that_of_keras(dtype, rows, mode, block_size, monkeypatch):
    monkeypatch.setattr(embedding_layer, "_ELEMENTS", 59)  # 5 rows of 11
    theirs, ours = embeddings(mode, dtype, rows, 11, block_size)
    random = np.random.RandomState(1)
    for shape in ((3,), (2, 3), (1, 0)):
        ids = random.randint(0, rows, shape)
        expected = tiny.numpy(theirs(ids))
        for call in (ours, compiled(lambda ids: ours(ids))):
            np.testing.assert_array_equal(tiny.numpy(call(ids)), expected)
    for shape in ((4, 11), (2, 3, 11)):
        x = random.normal(size=shape).astype("float32")
        expected = tiny.numpy(theirs(x, reverse=True))
        # A product of fewer columns adds up in another order; in half precision by one rounding.
        tolerance = 1e-5 if dtype == "float32" else 2**-6
        for call in (lambda x: ours(x, reverse=True), compiled(lambda x: ours(x, reverse=True))):
            found = tiny.numpy(call(x))
            assert found.shape == (*shape[:-1], rows)
            np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
