"""Keras, KerasHub, JAX and the hubs' clients still do what keras_internals needs of them."""

import json

import h5py
import huggingface_hub
import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf
from huggingface_hub import constants
from keras.src.quantizers.gptq_core import find_layers_in_block

import tiny
from backend_independent import backend_independent
from keras_rgemma.keras_internals import (
    calibration,
    hubs,
    layers,
    preprocessors,
    presets,
    pytree,
    saving,
    tensorflow,
    tokenizers,
    training,
    variables,
)
from keras_rgemma.text.literal_space import Wrapper

INPUTS = np.linspace(-1, 1, 32, dtype="float32").reshape(4, 8)


def built(layer, shape=(None, 8)):
    layer.build(shape)
    return layer


def dense(**kwargs):
    return built(keras.layers.Dense(4, **kwargs))


def einsum(**kwargs):
    return built(keras.layers.EinsumDense("ab,bc->ac", output_shape=4, bias_axes="c", **kwargs))


def compiled(cls=keras.Model):
    """A functional model of one layer that can be trained."""
    x = keras.Input((8,))
    model = cls(x, keras.layers.Dense(1)(x))
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model


# === Trees ===


def test_a_registered_class_is_a_node_of_a_tree():
    class Pair:
        def __init__(self, *values):
            self.values = values

        def tree_flatten(self):
            return self.values, None

        @classmethod
        def tree_unflatten(cls, aux, values):
            return cls(*values)

    assert len(keras.tree.flatten(Pair(1, 2))) == 1
    pytree.register_pytree(Pair)
    doubled = keras.tree.map_structure(lambda x: 2 * x, [Pair(1, 2), 3])
    assert keras.tree.flatten(doubled) == [2, 4, 6]
    assert isinstance(doubled[0], Pair)


# === Variables ===


def test_variables_wait_for_their_value():
    with variables.uninitialized_variables():
        layer = dense(kernel_initializer="ones")
    with keras.StatelessScope():
        pass  # at whose end Keras initialises what it knows to be waiting
    assert [variables.has_value(x) for x in layer.variables] == [False, False]
    variables.initialize(layer.kernel)
    variables.initialize(layer.bias, keras.initializers.Constant(3.0))
    assert [variables.has_value(x) for x in layer.variables] == [True, True]
    np.testing.assert_array_equal(tiny.numpy(layer.kernel), np.ones((8, 4)))
    np.testing.assert_array_equal(tiny.numpy(layer.bias), 4 * [3.0])
    with pytest.raises(ValueError, match="already"):
        variables.initialize(layer.kernel)


def test_variables_that_waited_before_still_do():
    with keras.StatelessScope():
        before = dense(kernel_initializer="ones")
        with variables.uninitialized_variables():
            inside = dense()
        assert not variables.has_value(before.kernel)
    assert [variables.has_value(x.kernel) for x in (before, inside)] == [True, False]


# === Layers ===


def test_layers_are_listed_at_any_depth_and_once():
    shared = keras.layers.Dense(8)
    x = keras.Input((8,))
    inner = keras.Model(x, shared(shared(x)))
    outer = keras.Sequential([x, inner, keras.layers.ReLU()])
    found = layers.layers_of(outer)
    assert found[0] is outer
    assert {shared, inner} <= set(found)
    assert len(set(found)) == len(found)
    assert layers.layers_of(outer, include_self=False) == found[1:]


def test_frozen_variables_were_created_trainable():
    layer = built(keras.layers.BatchNormalization())
    layer.trainable = False
    assert layer.trainable_variables == []
    found = layers.variables_created_trainable(layer)
    assert {id(x) for x in found} == {id(layer.gamma), id(layer.beta)}


def test_the_variables_of_an_optimizer_are_those_it_was_built_for():
    layer, optimizer = dense(), keras.optimizers.Adam()
    optimizer.build(layer.trainable_variables)
    layer.trainable = False
    found = layers.variables_created_trainable(optimizer)
    assert {id(x) for x in found} == {id(layer.kernel), id(layer.bias)}


@pytest.mark.parametrize("make", [dense, einsum])
def test_variables_are_removed(make):
    layer = make()
    before = [id(x) for x in layer.variables]
    names = ("lora_kernel_a", "lora_kernel_b")
    for _ in range(2):
        layer.enable_lora(2)
        assert len(layer.variables) == len(before) + 2
        layers.remove_variables(layer, names)
        layer.lora_enabled = False
        assert [id(x) for x in layer.variables] == before
        assert [getattr(layer, name) for name in names] == [None, None]
        with pytest.raises(ValueError, match="cannot add"):
            layer.add_weight(shape=())  # it is locked again


@pytest.mark.parametrize("make", [dense, einsum])
def test_the_kernel_is_kept_without_lora(make):
    layer = make()
    before = tiny.numpy(layer.kernel)
    layer.enable_lora(2)
    layer.lora_kernel_b.assign(np.ones((2, 4)))
    assert np.abs(tiny.numpy(layer.kernel) - before).max() > 0
    np.testing.assert_array_equal(tiny.numpy(layers.stored_variable(layer, "kernel")), before)


@pytest.mark.parametrize("mode, shape", [("int8", (8, 4)), ("int4", (8, 2))])
@pytest.mark.parametrize("make", [dense, einsum])
def test_the_kernel_is_kept_rounded(make, mode, shape):
    layer = make()
    layer.quantize(mode)
    kernel = layers.stored_variable(layer, "kernel")
    assert (kernel.shape, kernel.dtype in ("int8", "uint8")) == (shape, True)


def test_a_policy_of_its_own_leaves_the_shared_map_and_the_kernel_alone():
    policies = keras.dtype_policies.DTypePolicyMap("float32")
    policies["here"] = keras.DTypePolicy("bfloat16")
    layer = keras.layers.Dense(4, name="here", dtype=policies)
    layer.build((None, 8))
    own = keras.dtype_policies.get("int8_from_float32")
    layers.set_own_policy(layer, own)
    assert layer.dtype_policy is own
    assert layer.quantization_mode == "int8"
    assert policies["here"].name == "bfloat16"
    assert layers.stored_variable(layer, "kernel").dtype == "bfloat16"


@pytest.mark.parametrize("mode", ["int8", "int4"])
@pytest.mark.parametrize("make", [dense, einsum])
def test_lora_is_merged_into_a_rounded_kernel(make, mode):
    layer = make()
    expected = tiny.numpy(layer.kernel)
    layer.quantize(mode)
    layer.enable_lora(2)
    layer.lora_kernel_b.assign(np.ones((2, 4)))
    expected = expected + tiny.numpy(layer.lora_kernel_a) @ np.ones((2, 4))
    kernel, scale, zero = layers.kernel_with_merged_lora(layer)
    layers.remove_variables(layer, ("lora_kernel_a", "lora_kernel_b"))
    layer.lora_enabled = False
    layers.stored_variable(layer, "kernel").assign(kernel)
    layer.kernel_scale.assign(scale)
    if zero is not None:
        layer.kernel_zero.assign(zero)
    found = tiny.numpy(layer(np.eye(8, dtype="float32")))
    step = 2 * np.abs(expected).max() / (255 if mode == "int8" else 15)
    np.testing.assert_allclose(found, expected, 0, 1.1 * step)
    assert (zero is None) == (mode == "int8" or not hasattr(layer, "kernel_zero"))


class SavesDense(layers.SavesZeroPoint, keras.layers.Dense):
    pass


class SavesEinsum(layers.SavesZeroPoint, keras.layers.EinsumDense):
    pass


@pytest.mark.parametrize("mode", ["gptq/4/-1", "awq/4/-1"])
@pytest.mark.parametrize("cls", [SavesDense, SavesEinsum])
def test_the_zero_point_is_saved(cls, mode):
    arguments = (4,) if cls is SavesDense else ("ab,bc->ac", 4)
    stores = []
    for kind in (cls, cls.__bases__[1]):
        layer = built(kind(*arguments, dtype=f"{mode}_from_float32"))
        stores.append({})
        layer.save_own_variables(stores[-1])
    saved, without = stores
    assert len(saved) == len(without) + 1
    layer = built(cls(*arguments, dtype=f"{mode}_from_float32"))
    layer.load_own_variables(saved)
    with pytest.raises((KeyError, ValueError)):
        layer.load_own_variables(without)


def test_calibration_finds_the_layers_that_a_block_names():
    class Block(calibration.CalibratedBlock):
        def calibrated_layers(self):
            return [self.named, keras.layers.ReLU()]

    block = Block()
    block.named, block.other = dense(name="named"), dense(name="other")
    assert find_layers_in_block(block) == {"named": block.named}


# === Training ===


def test_an_evaluation_inside_of_fit_is_told_apart():
    told = []

    class Model(keras.Model):
        def evaluate(self, *args, **kwargs):
            told.append(training.nested_evaluation(kwargs))
            return super().evaluate(*args, **kwargs)

    model, y = compiled(Model), np.zeros((4, 1))
    model.fit(INPUTS, y, validation_data=(INPUTS, y), verbose=0)
    model.evaluate(INPUTS, y, verbose=0)
    assert told == [True, False]


def test_weights_have_their_values_in_a_callback():
    model, seen = compiled(), []
    before = tiny.numpy(model.weights[0])

    def look(batch, logs):
        training.sync_weights(model)
        seen.append(tiny.numpy(model.weights[0]))

    callback = keras.callbacks.LambdaCallback(on_train_batch_end=look)
    model.fit(INPUTS, np.ones((4, 1)), batch_size=2, shuffle=False, callbacks=[callback], verbose=0)
    assert np.abs(seen[0] - before).max() > 0
    assert np.abs(seen[1] - seen[0]).max() > 0
    assert hasattr(model, "jax_state_sync") == (keras.config.backend() == "jax")


def test_losses_are_reported_in_float32():
    keras.config.set_floatx("bfloat16")
    try:
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
        model.compile("sgd", "mae")
        training.report_loss_in_float32(model)
        names = [metric.name for metric in model.metrics]
        model.set_weights([np.array([[0.0]])])
        x, y = np.zeros((600, 1)), np.r_[np.full((300, 1), 4.0), np.full((300, 1), 4.03125)]
        assert names == ["loss"]
        assert float(model.evaluate(x, y, batch_size=1, verbose=0)) == pytest.approx(4.015625)
    finally:
        keras.config.set_floatx("float32")


def test_backups_have_their_files_and_their_progress(tmp_path):
    model, progress = compiled(), []
    backup = keras.callbacks.BackupAndRestore(tmp_path, delete_checkpoint=False)
    weights, metadata = training.backup_files(backup)
    y = np.ones((4, 1))
    save = model.save_weights

    def save_weights(filepath, **kwargs):
        save(filepath, **kwargs)
        progress.append((str(filepath), training.backup_progress(backup)))

    model.save_weights = save_weights
    model.fit(INPUTS, y, epochs=2, callbacks=[backup], verbose=0)
    assert progress == [(str(weights), {"epoch": n, "batch": 0}) for n in (1, 2)]
    assert json.loads(metadata.read_text()) == {"epoch": 2, "batch": 0}
    assert weights.is_file()


def test_the_epoch_of_a_backup_is_forgotten(tmp_path):
    y, epochs = np.ones((4, 1)), {}
    for forgets in (False, True):
        folder = tmp_path / str(forgets)
        for _ in range(2):  # the second of which goes on from the backup of the first
            model = compiled()
            backup = keras.callbacks.BackupAndRestore(folder, delete_checkpoint=False)
            model.fit(INPUTS, y, epochs=2, callbacks=[backup], verbose=0)
        if forgets:
            training.forget_initial_epoch(model)
        epochs[forgets] = model.fit(INPUTS, y, epochs=3, verbose=0).epoch
    assert epochs == {False: [2], True: [0, 1, 2]}


# === Files ===


def test_the_layers_of_a_file_of_weights_are_counted(tmp_path):
    model = tiny.backbone(num_layers=3)
    model.save_weights(tmp_path / "model.weights.h5")
    with h5py.File(tmp_path / "model.weights.h5") as file:
        found = saving.saved_layers(file, "residual_block")
        assert found == {"residual_block", "residual_block_1", "residual_block_2"}
        assert saving.saved_layers(file, "residual") == set()


def test_the_config_of_a_preset_is_read(tmp_path):
    model = tiny.backbone()
    model.save_to_preset(tmp_path)
    config = presets.preset_config(str(tmp_path))
    assert config["class_name"] == "RGemmaBackbone"
    assert config["config"]["hidden_dim"] == model.hidden_dim


# === Text ===


class Sevens(Wrapper):
    """A processor that makes each text one 7."""

    def Encode(self, texts, **kwargs):
        return [[7] for _ in texts]

    def tokenize(self, texts):
        return tf.RaggedTensor.from_tensor(tf.fill([tf.shape(texts)[0], 1], 7))


class SevensTokenizer(tokenizers.WrapsProcessors, keras_hub.tokenizers.SentencePieceTokenizer):
    def __init__(self, proto=None, **kwargs):
        tokenizers.add_special_token(self, "<bos>", "start_token")
        tokenizers.add_special_token(self, "<eos>", "end_token")
        tokenizers.add_special_token(self, "<pad>", "pad_token")
        super().__init__(proto=proto, **kwargs)

    def wrap_processor(self, processor):
        assert processor.IdToPiece(3) == "<unk>"
        return Sevens(processor, [])

    def wrap_graph_processor(self, processor, proto):
        assert isinstance(proto, bytes)
        return Sevens(processor, [])


class SevensPreprocessor(preprocessors.GenerationInputs, keras_hub.models.CausalLMPreprocessor):
    tokenizer_cls = SevensTokenizer
    in_graph = ()

    def generation_inputs(self, x, sequence_length):
        self.in_graph += (preprocessors.runs_in_graph(self),)
        return {"token_ids": self.tokenizer(x), "length": sequence_length}


def test_special_tokens_are_attributes():
    tokenizer = SevensTokenizer(tiny.proto())
    assert (tokenizer.start_token, tokenizer.start_token_id) == ("<bos>", 2)
    assert set(tokenizer.special_token_ids) == {0, 1, 2}
    with pytest.raises(ValueError, match="<bos>"):
        SevensTokenizer(tiny.proto(bos=False))


def test_the_processors_of_a_tokenizer_are_replaced():
    tokenizer = SevensTokenizer(tiny.proto())
    assert [list(row) for row in tokenizer(["a b", "c"])] == [[7], [7]]
    (batch,) = tf.data.Dataset.from_tensors(["a b", "c"]).map(tokenizer)
    assert batch.to_list() == [[7], [7]]


def test_a_processor_of_graphs_outlives_the_graph_that_asked_for_it():
    tokenizer = SevensTokenizer(tiny.proto())
    for _ in range(2):
        (batch,) = tf.data.Dataset.from_tensors(["a b"]).map(lambda x: tokenizer(x))
        assert batch.to_list() == [[7]]


@backend_independent
def test_tensorflow_is_started_and_its_graphs_are_left():
    tensorflow.start()

    @tf.function
    def graph():
        with tensorflow.outside_of_graphs():
            return tf.constant(tf.executing_eagerly())

    assert bool(graph())


@backend_independent
def test_operations_after_a_tensor():
    @tf.function
    def graph(x, y):
        product = tf.tanh(x)
        with tensorflow.after(product), tensorflow.after(keras.KerasTensor((1,))):
            return tf.square(y)

    specs = 2 * [tf.TensorSpec((), "float32")]
    operations = graph.get_concrete_function(*specs).graph.get_operations()
    (square,) = (x for x in operations if x.type == "Square")
    assert [x.type for x in square.control_inputs] == ["Tanh"]


@backend_independent
def test_a_graph_runs_with_the_values_that_variables_have():
    variable = tf.Variable([1.0, 2.0])

    def function(x, y):
        variable.assign_add([1.0, 1.0])
        return x + y, (variable * x, [y])

    graph = tf.function(function).get_concrete_function(*2 * [tf.TensorSpec((2,), "float32")])
    for count in (1, 2):
        found = tensorflow.run_graph(graph, [tf.constant([1.0, 2.0]), tf.constant([3.0, 4.0])])
        expected = [[4.0, 6.0], [1.0 + count, 2 * (2.0 + count)], [3.0, 4.0]]
        assert [x.numpy().tolist() for x in tf.nest.flatten(found)] == expected
        assert isinstance(found, tuple) and isinstance(found[1][1], list)
    with tf.GradientTape() as tape:
        _, (product, _) = tensorflow.run_graph(graph, [tf.constant([1.0, 2.0])] * 2)
        total = tf.reduce_sum(product)
    assert tape.gradient(total, variable).numpy().tolist() == [1.0, 2.0]
    variable.assign([3.0, 4.0])
    outer = tf.function(lambda x: tensorflow.run_graph(graph, [x, x])[0])
    assert outer(tf.constant([1.0, 2.0])).numpy().tolist() == [2.0, 4.0]
    assert variable.numpy().tolist() == [4.0, 5.0]


@pytest.mark.parametrize("kwargs", [{}, {"validation_split": 0.25}, {"shuffle": False}])
def test_arrays_are_shuffled_anew_in_each_epoch(kwargs):
    if keras.config.backend() != "tensorflow":
        pytest.skip("what TensorFlow does with arrays")
    from keras_rgemma.keras_internals import tensorflow

    x = np.arange(8, dtype="float32")
    given = {"x": {"a": x}, "y": -x, "sample_weight": None, "batch_size": 4} | kwargs
    arguments = tensorflow.shuffled_in_each_epoch({**given, "validation_data": None})
    if kwargs == {"shuffle": False}:
        assert arguments == {**given, "validation_data": None}
        return
    dataset = arguments["x"].get_tf_dataset()
    orders = []
    for _ in range(4):
        batches = [keras.tree.map_structure(np.array, batch) for batch in dataset]
        found = np.concatenate([inputs["a"] for inputs, _ in batches])
        np.testing.assert_array_equal(np.concatenate([label for _, label in batches]), -found)
        orders.append(tuple(found))
    trained = 6 if kwargs else 8
    assert len(set(orders)) > 1 and {tuple(sorted(x)) for x in orders} == {tuple(range(trained))}
    if kwargs:
        held_out, labels, _ = arguments["validation_data"]
        assert held_out["a"].tolist() == [6, 7] and np.array(labels).tolist() == [-6, -7]


def test_prompts_are_made_by_the_mixin_in_python_and_in_graphs():
    preprocessor = SevensPreprocessor(SevensTokenizer(tiny.proto()))
    found = preprocessor.generate_preprocess(["a b"], sequence_length=5)
    assert ([list(row) for row in found["token_ids"]], found["length"]) == ([[7]], 5)
    data = tf.data.Dataset.from_tensors(["a b"])
    (found,) = data.map(lambda x: preprocessor.generate_preprocess(x, sequence_length=5))
    assert (found["token_ids"].to_list(), int(found["length"])) == ([[7]], 5)
    assert preprocessor.in_graph == (False, True)


@pytest.mark.skipif(keras.config.backend() != "jax", reason="programs of JAX")
def test_programs_are_counted():
    import jax

    from keras_rgemma.keras_internals.jax import program_count

    function = jax.jit(lambda x: 2 * x)
    assert program_count(function) == 0
    for size in (1, 2, 1):
        function(np.zeros(size))
    assert program_count(function) == 2


def test_values_are_those_of_the_variables():
    if keras.config.backend() != "jax":
        pytest.skip("what programs of JAX take")
    from keras_rgemma.keras_internals.jax import values_of

    group = [keras.Variable(i, dtype="float32") for i in range(3)]
    group[1].assign(5.0)
    assert all(x is y.value for x, y in zip(values_of(group), group, strict=True))
    with variables.uninitialized_variables():
        waiting = keras.Variable(lambda shape, dtype: np.zeros(shape), shape=(2,))
    assert len(values_of([*group, waiting])) == 4


# === Hubs ===


@backend_independent
def test_files_of_hugging_face_lie_where_its_cache_has_them(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    blobs = hubs.hugging_face_blobs("owner/name")
    snapshot = blobs.parent / "snapshots" / ("0" * 40)
    for folder in (blobs, snapshot):
        folder.mkdir(parents=True)
    (blobs / "hash").write_text("12345")
    (snapshot / "config.json").symlink_to(blobs / "hash")
    (repository,) = huggingface_hub.scan_cache_dir(tmp_path).repos
    assert (repository.repo_id, repository.repo_type) == ("owner/name", "model")
    assert repository.size_on_disk == 5


@backend_independent
def test_handles_of_kaggle_are_read():
    handle = hubs.parse_kaggle_handle("owner/model/flax/2b")
    assert (handle.framework, str(handle)) == ("flax", "owner/model/flax/2b")
    assert str(handle.with_version(3)) == "owner/model/flax/2b/3"
    assert str(hubs.parse_kaggle_handle("owner/model/flax/2b/3").with_version(0)) == str(handle)
    assert handle.with_version(0).to_url().endswith("/models/owner/model/flax/2b")
    for name in ("owner/model", "owner/model/flax/2b/x"):
        with pytest.raises(ValueError):
            hubs.parse_kaggle_handle(name)


@pytest.mark.parametrize("block_size", [2, -1])
def test_the_arrays_of_an_embedding_in_int4(block_size):
    embedding = keras.layers.ReversibleEmbedding(6, 4)
    embedding.build()
    config = keras.quantizers.Int4QuantizationConfig(block_size=block_size)
    embedding.quantize("int4", config=config)
    assert layers.int4_group_size(embedding) == block_size
    assert layers.int4_group_size(keras.layers.Dense(1)) == -1
    arrays = layers.embedding_arrays(embedding)
    by_row = {f"embeddings{x}": y for x, y in (("", (6, 2)), ("_scale", (6, 2)), ("_zero", (6, 2)))}
    expected = by_row if block_size == 2 else {"embeddings": (6, 2), "embeddings_scale": (6,)}
    assert {name: tuple(array.shape) for name, array in arrays.items()} == expected
    rows = layers.with_arrays(embedding, {name: array[2:5] for name, array in arrays.items()})
    expected = tiny.numpy(embedding(np.array([2, 3, 4])))
    found = rows.quantized_call(keras.ops.convert_to_tensor([0, 1, 2]))
    np.testing.assert_array_equal(tiny.numpy(found), expected)
    assert np.abs(expected).max() > 0


# === Attributes that are public but in no documentation ===


def test_attributes_without_documentation_are_there():
    plain, rounded, calibrated = dense(), einsum(), dense(dtype="gptq/4/-1_from_float32")
    plain.enable_lora(2, lora_alpha=3)
    rounded.quantize("int4")
    lm = tiny.causal_lm()
    embedding = keras.layers.ReversibleEmbedding(8, 4, logit_soft_cap=2.0)
    embedding.build()
    embedding.quantize("int4")
    lm.preprocessor("text")
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())
    assert (plain.lora_enabled, plain.lora_rank, plain.lora_alpha) == (True, 2, 3)
    assert plain.lora_kernel_a.shape == (8, 2)
    assert rounded.original_kernel_shape == (8, 4)
    assert rounded.kernel_scale.dtype == "float32"
    assert not calibrated.is_gptq_calibrated
    assert embedding.logit_soft_cap == 2.0
    assert hasattr(embedding, "inputs_quantizer")
    assert lm.generate_function is None
    assert isinstance(lm.preprocessor.packer, keras_hub.layers.StartEndPacker)
    assert keras.callbacks.CallbackList([], model=lm).callbacks is not None
    assert isinstance(scaled.inner_optimizer, keras.optimizers.SGD)


@pytest.mark.skipif(keras.config.backend() != "jax", reason="meshes of JAX")
def test_a_mesh_has_the_devices_that_it_is_given():
    import jax

    from keras_rgemma.keras_internals.jax import mesh_of

    given = jax.sharding.Mesh(np.reshape(jax.devices()[:1], (1, 1)), ("batch", "model"))
    mesh = mesh_of(given)
    assert mesh.shape == (1, 1) and mesh.axis_names == ("batch", "model")
    layout = keras.distribution.TensorLayout((None, "model"), mesh)
    assert layout.backend_layout.mesh is given
