"""Keras still does what LoRA, quantized layers and training need of its private names."""

import contextlib
import gc
import json
import weakref

import keras
import numpy as np
import pytest

import tiny
from backend_independent import backend_independent
from keras_rgemma.keras_internals import layers, saving, training
from keras_rgemma.layers.linear import Linear

pytestmark = backend_independent


@pytest.fixture
def dense():
    layer = keras.layers.Dense(3)
    layer.build((None, 2))
    return layer


def output(layer):
    return tiny.numpy(layer.call(keras.ops.convert_to_tensor([[1.0, 2.0]])))


def test_layers_are_listed_once_at_any_depth():
    inner = keras.layers.Dense(1, name="inner")
    model = keras.Sequential([keras.Sequential([inner]), inner])
    assert [layer.name for layer in layers.layers_of(model)].count("inner") == 1
    assert layers.layers_of(model)[0] is model
    assert model not in layers.layers_of(model, include_self=False)


def test_variables_that_were_created_trainable_are_known_when_they_are_frozen(dense):
    dense.trainable = False
    assert layers.variables_created_trainable(dense) == [dense.kernel, dense.bias]
    optimizer = keras.optimizers.SGD()
    optimizer.build([dense.bias])
    assert layers.variables_created_trainable(optimizer) == [dense.bias]


class Cycle:
    def __init__(self):
        self.itself = self


@pytest.mark.parametrize("error", [None, RuntimeError])
def test_garbage_is_collected_among_new_objects_alone(error):
    old = Cycle()
    reference = weakref.ref(old)
    gc.unfreeze()
    with contextlib.suppress(RuntimeError), layers.small_collections():
        del old
        new = weakref.ref(Cycle())
        gc.collect()
        assert reference() is not None and new() is None
        if error:
            raise error
    assert gc.get_freeze_count() == 0
    gc.collect()
    assert reference() is None


def test_what_others_have_frozen_stays_frozen():
    gc.freeze()
    with layers.small_collections():
        pass
    assert gc.get_freeze_count()


def test_variables_are_removed(dense):
    layers.remove_variables(dense, ["bias"])
    assert dense.weights == [dense.kernel] and dense.bias is None
    with pytest.raises(ValueError, match="cannot add new elements of state"):
        dense.new = keras.Variable(0.0)


def test_a_copy_computes_with_other_attributes_and_the_same_variables(dense):
    copied = layers.with_attributes(dense, bias=None)
    assert copied.kernel is dense.kernel and dense.bias is not None
    dense.bias.assign([1.0, 1.0, 1.0])
    np.testing.assert_array_equal(output(copied), output(dense) - 1)
    assert dense.weights == [dense.kernel, dense.bias]


@pytest.mark.parametrize("mode", [None, "int8", "int4"])
def test_a_copy_computes_from_arrays(mode):
    layer = keras.layers.Dense(3)
    layer.build((None, 2))
    if mode:
        layer.quantize(mode)
    layer.enable_lora(1)
    layer.lora_kernel_b.assign(np.ones((1, 3)))
    names = {*layer.variable_serialization_spec[mode], "lora_kernel_a", "lora_kernel_b"}
    arrays = {name: keras.ops.copy(getattr(layer, name).value) for name in names - {"kernel"}}
    arrays["kernel"] = keras.ops.copy(layers.stored_variable(layer, "kernel").value)
    copied = layers.with_arrays(layer, arrays)
    call = (lambda x: x.quantized_call) if mode else (lambda x: x.call)
    inputs = keras.ops.convert_to_tensor([[1.0, 2.0]])
    expected = tiny.numpy(call(layer)(inputs))
    for weight in layer.weights:
        weight.assign(keras.ops.zeros(weight.shape, weight.dtype))
    np.testing.assert_array_equal(tiny.numpy(call(copied)(inputs)), expected)
    assert np.abs(expected).min() > 0


def test_the_stored_kernel_is_the_kernel_without_lora(dense):
    before = tiny.numpy(dense.kernel)
    dense.enable_lora(1)
    dense.lora_kernel_b.assign(np.ones((1, 3)))
    np.testing.assert_array_equal(tiny.numpy(layers.stored_variable(dense, "kernel")), before)
    assert (tiny.numpy(dense.kernel) != before).any()


def test_the_variables_in_files(dense):
    assert layers.stored_variable(dense, "bias") is dense.bias
    assert layers.stored_variable(dense, "kernel_scale") is None
    dense.quantize("int8")
    assert layers.stored_variable(dense, "kernel").dtype == "int8"
    assert layers.stored_variable(dense, "kernel_scale") is dense.kernel_scale
    embedding = keras.layers.ReversibleEmbedding(4, 3)
    embedding.build()
    embedding.quantize("int4")
    assert layers.stored_variable(embedding, "embeddings").dtype == "int8"


@pytest.mark.parametrize("policy, dtype", [("mixed_bfloat16", "bfloat16"), ("float32", "float32")])
def test_variables_have_the_dtype_that_a_call_sees(policy, dtype):
    seen = []

    class Layer(keras.layers.Layer):
        def call(self, x):
            seen.append(keras.ops.convert_to_tensor(self.weight))
            return x

    layer = Layer(dtype=policy)
    layer.weight = layer.add_weight(shape=(2,), initializer="ones")
    layer(np.zeros((1, 2)))
    value = layers.value_in_call(layer, layer.weight)
    assert keras.backend.standardize_dtype(value.dtype) == dtype
    assert value.dtype == seen[0].dtype


def test_lora_is_merged_into_a_quantized_kernel():
    layer = keras.layers.Dense(3, use_bias=False)
    layer.build((None, 2))
    layer.quantize("int8")
    layer.enable_lora(1)
    layer.lora_kernel_b.assign(np.ones((1, 3)))
    kernel, scale = map(tiny.numpy, layers.kernel_with_merged_lora(layer)[:2])
    expected = tiny.numpy(layers.stored_variable(layer, "kernel")) / tiny.numpy(layer.kernel_scale)
    expected = expected + tiny.numpy(layer.lora_kernel_a) @ np.ones((1, 3))
    np.testing.assert_allclose(kernel / scale, expected, atol=0.02)


def test_keras_forgets_the_zero_point_of_a_layer_that_was_calibrated():
    """Where it fails, `SavesZeroPoint` is not needed any more."""
    config = keras.quantizers.GPTQConfig(dataset=None, tokenizer=None, weight_bits=4, group_size=-1)
    kernels = []
    for cls in (keras.layers.Dense, Linear):
        layer = cls(3)
        layer.build((None, 2))
        layer.quantize("gptq", config=config)
        kernels.append(layer._get_kernel_with_merged_lora()[2])
    assert kernels[0] is None and kernels[1] is not None


def test_a_policy_of_its_own_quantizes_nothing(dense):
    layers.set_own_policy(dense, keras.dtype_policies.get("int8_from_float32"))
    assert dense.quantization_mode == "int8"
    assert (
        keras.backend.standardize_dtype(layers.stored_variable(dense, "kernel").dtype) == "float32"
    )


@pytest.mark.parametrize("name", ["lm.weights.h5", "lm.weights.json", "lm.keras"])
def test_files_of_weights_are_opened_as_keras_does(name, tmp_path):
    lm = tiny.causal_lm(None)
    if name.endswith(".keras"):
        lm.save(tmp_path / name)
    else:
        shards = {"max_shard_size": 3e-5} if name.endswith("json") else {}
        lm.save_weights(tmp_path / name, **shards)
    found = set()
    with saving.open_weights(tmp_path / name) as store:
        for file in saving.h5_files(store):
            file.visit(lambda group: found.add(str(saving.saved_block(group, "residual_block"))))
    assert str((0, ["mlp_block", "ffw_up", "vars", "0"])) in found
    assert str((1, ["attention_block", "query", "vars", "0"])) in found


@pytest.mark.parametrize("is_built", [False, True])
def test_the_variables_of_the_optimizer_of_each_model_are_counted(is_built, tmp_path):
    sizes = []

    class Model(keras.Sequential):
        def load_own_variables(self, store):
            sizes.append(saving.saved_optimizer_size(store))
            super().load_own_variables(store)

    inner = Model([keras.Input((2,)), keras.layers.Dense(2)])
    outer = Model([keras.Input((2,)), inner, keras.layers.Dense(2)])
    for model, momentum in ((inner, 0.0), (outer, 0.9)):
        model.compile(keras.optimizers.SGD(0.1, momentum), "mse")
        if is_built:
            model.optimizer.build(model.trainable_variables)
    outer.save_weights(tmp_path / "m.weights.h5")
    with saving.open_weights(tmp_path / "m.weights.h5") as store:
        assert saving.saved_optimizer_size(store) == len(outer.optimizer.variables)
    outer.load_weights(tmp_path / "m.weights.h5")
    assert sizes == [len(model.optimizer.variables) for model in (outer, inner)]


def test_other_files_are_not_opened(tmp_path):
    for name in ("a.h5", "missing.weights.h5"):
        with saving.open_weights(tmp_path / name) as store:
            assert store is None


@pytest.mark.parametrize("shards", [{}, {"max_shard_size": 3e-5}])
def test_the_files_of_a_store_are_open_while_it_is_loaded(shards, tmp_path):
    groups = []

    class Layer(keras.layers.Dense):
        def load_own_variables(self, store):
            for file in saving.h5_files(store):
                file.visit(groups.append)
            super().load_own_variables(store)

    path = tmp_path / f"m.weights.{'json' if shards else 'h5'}"
    model = keras.Sequential([keras.Input((80,)), keras.layers.Dense(80), Layer(80)])
    model.save_weights(path, **shards)
    model.load_weights(path)
    assert {"layers/dense/vars/0", "layers/layer/vars/0"} <= {*groups}
    if shards:
        with open(path) as file:
            names = json.load(file)["weight_map"].values()
        assert len({str(name) for name in names}) > 1


def test_groups_are_told_apart():
    found = saving.saved_block("layers/lm/layers/residual_block_12/a/vars", "residual_block")
    assert found == (12, ["a", "vars"])
    assert saving.saved_block("layers/residual_block/a", "residual_block") == (0, ["a"])
    for group in ("layers/residual_blocks/a", "residual_block/a", "layers/my_residual_block_1/a"):
        assert saving.saved_block(group, "residual_block") is None


def test_fit_marks_the_evaluations_of_its_own():
    marks = []

    class Model(keras.Sequential):
        def evaluate(self, *args, **kwargs):
            marks.append(training.nested_evaluation(kwargs))
            return super().evaluate(*args, **kwargs)

    model = Model([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    data = np.ones((2, 2)), np.ones((2, 1))
    model.fit(*data, validation_data=data, verbose=0)
    model.evaluate(*data, verbose=0)
    assert marks == [True, False]


def test_a_restored_epoch_is_kept_until_it_is_forgotten(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")

    def fit(epochs, *callbacks):
        data = np.ones((2, 2)), np.ones((2, 1))
        return model.fit(*data, epochs=epochs, callbacks=[*callbacks], verbose=0).epoch

    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path, delete_checkpoint=False)

    fit(1, backup())
    assert fit(2, backup()) == [1]
    training.forget_initial_epoch(model)
    assert fit(2) == [0, 1]


def test_a_backup_is_two_files(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    callback = keras.callbacks.BackupAndRestore(tmp_path, delete_checkpoint=False)
    model.fit(np.ones((2, 2)), np.ones((2, 1)), callbacks=[callback], verbose=0)
    weights, progress = training.backup_files(callback)
    assert {*tmp_path.iterdir()} == {weights, progress}
    assert json.loads(progress.read_text())["epoch"] == 1
    model.load_weights(weights)


def test_jax_keeps_weights_elsewhere_in_callbacks():
    """Of JAX's trainer, whichever backend runs; the others have nothing to write back."""
    from keras.src.backend.jax.trainer import JAXTrainer

    called = []

    class Trainer(JAXTrainer):
        def jax_state_sync(self):
            called.append(self)

    trainer = object.__new__(Trainer)
    training.sync_weights(trainer)
    assert called == [trainer]
    training.sync_weights(object())
    assert hasattr(JAXTrainer, "jax_state_sync")
