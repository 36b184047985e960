"""Training: `fit`, `evaluate` and `predict` on every kind of data and in every precision."""

import concurrent.futures
import functools
import itertools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import tiny
from keras_rgemma import RGemmaCausalLM
from keras_rgemma.finetuning import AdamW
from keras_rgemma.ops import cross_entropy

TEXTS = [*tiny.SENTENCES[:3], "a"]  # the last one is nearly all pads
BATCH = 2


@pytest.fixture(scope="module")
def compiled():
    """One model for the file, so that its programs are compiled once, and its first values."""
    keras.utils.set_random_seed(0)
    lm = tiny.randomize(tiny.causal_lm(sequence_length=16))
    lm.compile(optimizer=keras.optimizers.Adam(1e-2))
    lm.optimizer.build(lm.trainable_variables)
    variables = [*lm.variables, *lm.optimizer.variables]
    return lm, [(variable, tiny.numpy(variable)) for variable in variables]


@pytest.fixture
def lm(compiled):
    lm, values = compiled
    for variable, value in values:
        variable.assign(value)
    lm.preprocessor = tiny.preprocessor(16)
    return lm


def arrays(texts=TEXTS):
    """The preprocessed texts as numpy arrays: x, y, sample_weight."""
    return keras.tree.map_structure(tiny.numpy, tiny.preprocessor(16)(texts))


def dataset(texts=TEXTS):
    return tf.data.Dataset.from_tensor_slices(texts).batch(BATCH)


def fit(lm, *data, epochs=2, **kwargs):
    """The loss of each epoch."""
    return lm.fit(*data, epochs=epochs, shuffle=False, verbose=0, **kwargs).history["loss"]


def log_softmax(logits):
    logits = logits.astype("float64")
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


# === What goes in ===


def test_the_loss_falls(lm):
    losses = fit(lm, TEXTS, batch_size=BATCH, epochs=8)
    assert losses[-1] < 0.7 * losses[0]
    assert np.isfinite(losses).all()


def test_fit_takes_texts_and_arrays_in_every_form(lm, compiled):
    def again(*data, **kwargs):
        for variable, value in compiled[1]:
            variable.assign(value)
        return fit(lm, *data, **kwargs)

    expected = again(TEXTS, batch_size=BATCH)
    # The same programs on the same numbers; threads may sum in another order.
    np.testing.assert_allclose(again(np.array(TEXTS), batch_size=BATCH), expected, rtol=1e-4)
    np.testing.assert_allclose(again(dataset()), expected, rtol=1e-4)
    prepared = dataset().map(lm.preprocessor)
    lm.preprocessor = None
    np.testing.assert_allclose(again(prepared), expected, rtol=1e-4)
    x, y, weight = arrays()
    received = again(x, y, sample_weight=weight, batch_size=BATCH)
    np.testing.assert_allclose(received, expected, rtol=1e-4)
    # Without the weights of the pads it is another loss: the comparison above can fail.
    assert abs(again(x, y, batch_size=BATCH)[0] - expected[0]) > 0.1


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("split", [0.0, 0.2])
def test_examples_are_shuffled(shuffle, split):
    keras.utils.set_random_seed(0)
    lm = tiny.randomize(tiny.causal_lm(sequence_length=16))
    lm.compile(keras.optimizers.SGD(0.0), weighted_metrics=[])
    seen = []
    each = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(logs))
    data = {"x": [*TEXTS, TEXTS[0]] if split else TEXTS, "validation_split": split}
    lm.fit(**data, batch_size=1, epochs=4, shuffle=shuffle, verbose=0, callbacks=[each])
    # What Keras reports is the mean of the epoch so far.
    means = np.array([logs["loss"] for logs in seen]).reshape(4, len(TEXTS))
    losses = np.diff(means * np.arange(1, 5), axis=1, prepend=0)
    alone = [lm.evaluate([text], verbose=0) for text in TEXTS]
    assert (np.abs(losses - alone) > 1e-2).any() == shuffle
    for found in losses:
        expected, found = (np.sort(alone), np.sort(found)) if shuffle else (alone, found)
        np.testing.assert_allclose(found, expected, rtol=1e-3)
    orders = {tuple(np.argsort(found)) for found in losses}
    assert (len(orders) > 1) == shuffle


@pytest.mark.parametrize("kwargs", [{"validation_data": TEXTS}, {"validation_split": 0.5}])
def test_validation_has_the_batch_size_of_training(lm, kwargs):
    batches = []
    each = keras.callbacks.LambdaCallback(on_test_batch_end=lambda n, logs: batches.append(n))
    data = TEXTS if "validation_data" in kwargs else TEXTS * 2
    lm.fit(data, batch_size=2, verbose=0, callbacks=[each], **kwargs)
    assert batches == [0, 1]


def test_fit_takes_a_grain_dataset(lm):
    grain = pytest.importorskip("grain")
    source = grain.MapDataset.source(TEXTS).batch(BATCH)
    received = fit(lm, source)
    lm.preprocessor = None
    x, y, weight = arrays()
    assert received[1] < received[0]
    prepared = [
        ({k: v[i : i + 2] for k, v in x.items()}, y[i : i + 2], weight[i : i + 2]) for i in (0, 2)
    ]
    assert np.isfinite(fit(lm, grain.MapDataset.source(prepared))).all()


def test_evaluate_agrees_with_the_logits(lm):
    results = lm.evaluate(TEXTS, batch_size=BATCH, verbose=0, return_dict=True)
    logits = lm.predict(TEXTS, batch_size=BATCH, verbose=0)
    _, y, weight = arrays()
    assert logits.shape == (4, 16, 400)
    losses = -np.take_along_axis(log_softmax(logits), y[..., None], axis=-1)[..., 0]
    # Keras divides by all positions, pads included.
    assert results["loss"] == pytest.approx((losses * weight).mean(), rel=1e-4)
    right = (logits.argmax(axis=-1) == y) * weight
    assert results["sparse_categorical_accuracy"] == pytest.approx(right.sum() / weight.sum())
    for data in (dataset(), np.array(TEXTS)):
        kwargs = {} if isinstance(data, tf.data.Dataset) else {"batch_size": BATCH}
        assert lm.evaluate(data, verbose=0, **kwargs)[0] == pytest.approx(results["loss"], rel=1e-5)


def test_predict_takes_texts_and_arrays_in_every_form(lm):
    expected = lm.predict(TEXTS, batch_size=BATCH, verbose=0)
    np.testing.assert_allclose(lm.predict(dataset(), verbose=0), expected, atol=1e-5)
    lm.preprocessor = None
    x, _, _ = arrays()
    received = lm.predict(x, batch_size=BATCH, verbose=0)
    np.testing.assert_allclose(received, expected, atol=1e-5)
    # A boolean mask and an integer one mean the same.
    for dtype in ("bool", "int32"):
        x["padding_mask"] = x["padding_mask"].astype(dtype)
        received = lm.predict(x, batch_size=BATCH, verbose=0)
        np.testing.assert_allclose(received, expected, atol=1e-5)


def test_a_model_is_not_traced_in_each_call():
    lm = tiny.causal_lm(sequence_length=8)
    calls = tiny.calls_of([lm])
    lm.predict(tiny.SENTENCES[:1], verbose=0)
    assert len(calls) == 1
    for run in (lm.evaluate, lm.fit, lm.predict):
        run(tiny.SENTENCES[:1], verbose=0)
        calls.clear()
        run(tiny.SENTENCES[:1], verbose=0)
        assert len(calls) == (keras.config.backend() == "torch"), run


@pytest.mark.parametrize("id", [-5, 400])
def test_token_ids_outside_of_the_vocabulary_are_refused(lm, id):
    before = lm.get_weights()
    rows = [[2, 7, 8], [2, id, 6]]
    data = {"token_ids": np.array(rows)}
    forms = (lambda: rows, lambda: iter(rows), lambda: data, lambda: iter([data]))
    for form in forms:
        for run in (lm.fit, lm.evaluate):
            with pytest.raises(ValueError, match=rf"\[0, 400\).*{id} in row 1, column 1"):
                run(form(), verbose=0)
    np.testing.assert_array_equal(np.concatenate([x.ravel() for x in before]), flat(lm))


def flat(lm):
    return np.concatenate([weight.ravel() for weight in lm.get_weights()])


@pytest.mark.parametrize("weight", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(lm, weight):
    with pytest.raises(ValueError, match=rf"{weight} for example 2"):
        lm.fit(TEXTS, sample_weight=[1.0, 1.0, weight, 1.0], verbose=0)


def test_rows_without_a_mask_have_no_pads(lm):
    x, y, _ = arrays()
    full = {"token_ids": x["token_ids"], "padding_mask": np.ones_like(x["token_ids"])}
    expected = lm.evaluate(full, y, verbose=0)
    assert lm.evaluate({"token_ids": x["token_ids"]}, y, verbose=0) == pytest.approx(expected)


def test_labels_at_pads_count_for_nothing(lm):
    lm.preprocessor = None
    x, y, weight = arrays()
    assert (weight == 0).any()
    loss, accuracy = lm.evaluate(x, y, sample_weight=weight, batch_size=BATCH, verbose=0)
    others = np.where(weight > 0, y, 7)
    received = lm.evaluate(x, others, sample_weight=weight, batch_size=BATCH, verbose=0)
    np.testing.assert_allclose(received, [loss, accuracy], rtol=1e-6)
    counted = np.where(weight > 0, 7, y)
    received = lm.evaluate(x, counted, sample_weight=weight, batch_size=BATCH, verbose=0)
    assert abs(received[0] - loss) > 0.01


def test_tokens_at_pads_count_for_nothing(lm):
    lm.preprocessor = None
    x, y, weight = arrays()
    expected = lm.evaluate(x, y, sample_weight=weight, batch_size=BATCH, verbose=0)
    x["token_ids"] = np.where(x["padding_mask"] > 0, x["token_ids"], 9)
    received = lm.evaluate(x, y, sample_weight=weight, batch_size=BATCH, verbose=0)
    np.testing.assert_allclose(received, expected, rtol=1e-5)


def test_every_weight_learns(lm):
    before = [tiny.numpy(weight) for weight in lm.trainable_weights]
    fit(lm, TEXTS, batch_size=BATCH, epochs=1)
    for weight, value in zip(lm.trainable_weights, before, strict=True):
        assert np.abs(tiny.numpy(weight) - value).max() > 1e-4, weight.path
    assert len(lm.trainable_weights) == len(lm.weights)


def test_callbacks_can_generate_and_score(lm, compiled):
    expected = fit(lm, TEXTS, batch_size=BATCH)
    seen = []

    def look(batch, logs):
        scores = tiny.numpy(lm.score(**tiny.arrays(rows=1)))
        seen.append((lm.generate("The quick", max_new_tokens=2), scores))

    for variable, value in compiled[1]:
        variable.assign(value)
    callback = keras.callbacks.LambdaCallback(on_train_batch_end=look)
    found = fit(lm, TEXTS, batch_size=BATCH, callbacks=[callback])
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert len(seen) == 4 and all(text.startswith("The quick") for text, _ in seen)
    assert all(np.abs(a[1] - b[1]).max() > 1e-3 for a, b in itertools.pairwise(seen))


def test_texts_need_a_batch_axis(lm):
    with pytest.raises(ValueError, match="batch dimension"):
        lm.fit("The quick brown fox", verbose=0)


# === Logits of some tokens at a time ===


@pytest.fixture
def chunks(monkeypatch):
    """Logits of three tokens at a time."""
    monkeypatch.setattr(cross_entropy, "CHUNK_LOGITS", 3 * 400)


def batches(lm):
    """What two steps and an evaluation report, and the weights after them."""
    x, y, weight = arrays(TEXTS[:2])
    logs = [lm.train_on_batch(x, y, sample_weight=weight) for _ in range(2)]
    logs.append(lm.test_on_batch(x, y, sample_weight=weight))
    return np.array(logs, "float64"), [tiny.numpy(weight) for weight in lm.trainable_weights]


@pytest.mark.parametrize("rank", [None, 2])
def test_the_default_loss_is_that_of_all_logits(rank, chunks):
    found = []
    for loss, metrics in (
        ("auto", "auto"),
        (
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            [keras.metrics.SparseCategoricalAccuracy()],
        ),
    ):
        lm = small()
        if rank:
            lm.backbone.enable_lora(rank)
            for i, weight in enumerate(lm.trainable_weights):
                weight.assign(np.random.RandomState(i).normal(0, 0.1, weight.shape))
        lm.compile(keras.optimizers.SGD(0.5), loss, weighted_metrics=metrics)
        found.append(batches(lm))
    (logs, weights), (expected_logs, expected_weights) = found
    np.testing.assert_allclose(logs, expected_logs, rtol=1e-5)
    assert logs[-1, 0] < logs[0, 0] and (rank or 0 < logs[-1, 1] < 1)
    for weight, expected in zip(weights, expected_weights, strict=True):
        np.testing.assert_allclose(weight, expected, rtol=1e-4, atol=1e-6)


def test_no_step_has_all_logits(chunks, monkeypatch):
    lm = small()
    lm.compile(keras.optimizers.SGD(0.5))
    x, y, weight = arrays(TEXTS[:2])
    lm.train_on_batch(x, y, sample_weight=weight)  # Keras builds metrics from symbolic logits
    lm.make_train_function(force=True)
    lm.make_test_function(force=True)
    original = type(lm.backbone.token_embedding).call

    def call(layer, inputs, reverse=False):
        assert not reverse
        return original(layer, inputs)

    monkeypatch.setattr(type(lm.backbone.token_embedding), "call", call)
    assert np.isfinite(lm.train_on_batch(x, y, sample_weight=weight)).all()
    assert np.isfinite(lm.test_on_batch(x, y, sample_weight=weight)).all()
    with pytest.raises(AssertionError):
        lm.predict_on_batch(x)


def test_a_model_gives_logits_while_another_thread_trains_it(monkeypatch):
    lm = small()
    x, y, weight = arrays(TEXTS[:2])
    shapes, original = [], lm.hidden_states

    def hidden_states(inputs, training):
        monkeypatch.undo()
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            shapes.append(tuple(thread.submit(lm, x).result().shape))
        return original(inputs, training)

    for step in (lm.train_on_batch, lm.test_on_batch):
        monkeypatch.setattr(lm, "hidden_states", hidden_states, raising=False)
        assert np.isfinite(step(x, y, sample_weight=weight)).all()
    assert shapes == 2 * [(2, 16, 400)]


def test_other_losses_and_metrics_get_all_logits():
    def loss(y_true, y_pred):
        assert y_pred.shape[-1] == 400
        return keras.losses.sparse_categorical_crossentropy(y_true, y_pred, from_logits=True)

    x, y, weight = arrays(TEXTS[:2])
    lm = small()
    for settings in (
        {"loss": loss},
        {"weighted_metrics": [keras.metrics.SparseTopKCategoricalAccuracy(7)]},
        {"metrics": [keras.metrics.SparseTopKCategoricalAccuracy(7)]},
    ):
        lm.compile(keras.optimizers.SGD(0.0), **settings)
        logs = lm.test_on_batch(x, y, sample_weight=weight, return_dict=True)
        # At the same weights the loss that is made of chunks.
        lm.compile(keras.optimizers.SGD(0.0))
        expected = lm.test_on_batch(x, y, sample_weight=weight, return_dict=True)["loss"]
        np.testing.assert_allclose(logs["loss"], expected, rtol=1e-5)


# === Settings ===


def test_training_goes_on_from_a_keras_file(tmp_path):
    x, y, weight = arrays(TEXTS[:2])
    lm = small()
    lm.compile(AdamW(1e-2))
    before = lm.train_on_batch(x, y, sample_weight=weight)
    lm.save(tmp_path / "lm.keras")
    expected = [lm.train_on_batch(x, y, sample_weight=weight) for _ in range(3)]
    loaded = keras.saving.load_model(tmp_path / "lm.keras")
    assert isinstance(loaded.optimizer, AdamW)
    assert type(loaded.loss) is type(lm.loss) is not keras.losses.SparseCategoricalCrossentropy
    found = [loaded.train_on_batch(x, y, sample_weight=weight) for _ in range(3)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert expected[-1][0] < expected[0][0] < before[0]


def test_settings_of_compile():
    lm = tiny.causal_lm()
    assert isinstance(lm.optimizer, keras.optimizers.Adam)
    assert float(lm.optimizer.learning_rate) == pytest.approx(2e-5)
    optimizer = keras.optimizers.AdamW(1e-3, weight_decay=0.1)
    lm.compile(optimizer=optimizer, sampler="top_k", weighted_metrics=[])
    assert lm.optimizer is optimizer
    assert isinstance(lm.loss, keras.losses.SparseCategoricalCrossentropy)
    assert lm.loss.from_logits
    uncompiled = RGemmaCausalLM(lm.backbone, lm.preprocessor, compile=False)
    with pytest.raises(ValueError, match="You must call `compile"):
        uncompiled.fit(TEXTS, verbose=0)


@functools.cache
def first_weights():
    return [tiny.numpy(w) for w in tiny.randomize(tiny.causal_lm(None)).weights]


def small(**overrides):
    """A model whose first weights are the same whatever its precision."""
    lm = tiny.causal_lm(None, **overrides)
    for weight, value in zip(lm.weights, first_weights(), strict=True):
        weight.assign(value)
    return lm


def steps(lm, count, learning_rate=0.5, **kwargs):
    """The losses of a few steps of gradient descent on the same batch."""
    lm.compile(
        optimizer=keras.optimizers.SGD(learning_rate, momentum=0.5), weighted_metrics=[], **kwargs
    )
    x = tiny.arrays()
    y = np.roll(x["token_ids"], -1, axis=1)
    weight = (np.roll(x["padding_mask"], -1, axis=1) * x["padding_mask"]).astype("float32")
    return [float(lm.train_on_batch(x, y, sample_weight=weight)) for _ in range(count)]


@pytest.fixture(scope="module")
def plain_steps():
    keras.utils.set_random_seed(0)
    return steps(small(), 3)


def test_an_eager_fit_is_the_same_fit(plain_steps):
    assert plain_steps[2] < plain_steps[1] < plain_steps[0]
    # Float32 sums in another order than the compiled program's.
    np.testing.assert_allclose(steps(small(), 2, run_eagerly=True), plain_steps[:2], rtol=1e-4)


@pytest.fixture
def recomputed(monkeypatch):
    """The functions whose activations Keras is told to recompute, as they are called."""
    wrapped, original = [], keras.src.backend.core.remat
    monkeypatch.setattr(keras.src.backend.core, "remat", lambda f: wrapped.append(f) or original(f))
    return wrapped


def test_recomputed_activations_change_nothing(plain_steps, recomputed):
    received = steps(small(gradient_checkpointing=True), 2)
    assert len(recomputed) >= 2  # each layer
    np.testing.assert_allclose(received, plain_steps[:2], rtol=1e-4)


def test_activations_are_kept_by_default(recomputed):
    lm = small(dropout=0.1)
    assert np.isfinite(steps(lm, 1)).all()
    assert not recomputed


def test_recomputed_activations_are_dropped_alike(plain_steps):
    # What is recomputed must be the same as what was dropped in the forward pass.
    keras.utils.set_random_seed(1)
    expected = steps(small(dropout=0.5), 2)
    keras.utils.set_random_seed(1)
    received = steps(small(dropout=0.5, gradient_checkpointing=True), 2)
    np.testing.assert_allclose(received, expected, rtol=1e-4)
    assert abs(expected[1] - plain_steps[1]) > 0.1


def test_a_model_that_recomputes_can_generate():
    lm = small(gradient_checkpointing=True)
    prompt = {"token_ids": np.array([[2, 300, 301]])}
    written = lm.generate(prompt, max_new_tokens=2, stop_token_ids=None)
    assert written["padding_mask"].sum() == 5


PRECISIONS = ("bfloat16", "mixed_bfloat16", "mixed_float16")


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_every_layer_has_the_precision_that_was_asked_for(dtype):
    policy = keras.dtype_policies.get(dtype)
    backbone = tiny.backbone(dtype=dtype)
    for weight in backbone.weights:
        assert keras.backend.standardize_dtype(weight.dtype) == policy.variable_dtype, weight.path
    for layer in backbone._flatten_layers():
        if not isinstance(layer, keras.layers.InputLayer):
            assert layer.compute_dtype == policy.compute_dtype, layer.name
            assert layer.variable_dtype == policy.variable_dtype, layer.name
    assert backbone.output.dtype == policy.compute_dtype


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_the_loss_falls_in_half_precision(dtype, plain_steps, tmp_path):
    policy = keras.dtype_policies.get(dtype)
    lm = small(dtype=dtype)
    losses = steps(lm, 8)
    assert np.isfinite(losses).all()
    # The first loss is computed before any update: bfloat16 has 8 bits, and errors of all tokens
    # and layers average out.
    assert losses[0] == pytest.approx(plain_steps[0], rel=0.02)
    assert losses[-1] < 0.9 * losses[0]
    assert all(np.isfinite(tiny.numpy(weight)).all() for weight in lm.weights)
    assert {keras.backend.standardize_dtype(w.dtype) for w in lm.weights} == {policy.variable_dtype}
    lm.save(tmp_path / "lm.keras")
    loaded = keras.saving.load_model(tmp_path / "lm.keras")
    assert loaded.dtype_policy.name == dtype
    for weight, expected in zip(loaded.weights, lm.weights, strict=True):
        assert weight.dtype == expected.dtype
        np.testing.assert_array_equal(tiny.numpy(weight), tiny.numpy(expected))


def test_hidden_states_have_the_precision_of_the_computation():
    hidden = tiny.backbone(dtype="mixed_bfloat16").predict_on_batch(tiny.arrays())
    assert keras.backend.standardize_dtype(hidden.dtype) == "bfloat16"


def test_mixed_float16_scales_the_loss():
    lm = small(dtype="mixed_float16")
    lm.compile(optimizer=keras.optimizers.SGD(0.1))
    assert isinstance(lm.optimizer, keras.optimizers.LossScaleOptimizer)


def test_dropout_acts_in_training_alone():
    plain, dropped = tiny.causal_lm(None), tiny.causal_lm(None, dropout=0.5)
    dropped.set_weights(tiny.randomize(plain).get_weights())
    assert [w.path for w in dropped.weights] == [w.path for w in plain.weights]
    x = tiny.arrays()
    expected = tiny.numpy(plain(x))
    np.testing.assert_array_equal(tiny.numpy(dropped(x)), expected)
    np.testing.assert_array_equal(tiny.numpy(dropped(x, training=False)), expected)
    np.testing.assert_array_equal(tiny.numpy(plain(x, training=True)), expected)
    first, second = (tiny.numpy(dropped(x, training=True)) for _ in range(2))
    assert np.abs(first - expected).max() > 0.1
    assert np.abs(first - second).max() > 0.1
    np.testing.assert_array_equal(tiny.numpy(dropped(x)), expected)


def test_a_uniform_model_has_the_loss_of_the_vocabulary(lm):
    lm.backbone.token_embedding.embeddings.assign(np.zeros((400, 16)))
    _, _, weight = arrays()
    expected = math.log(400) * weight.mean()
    assert lm.evaluate(TEXTS, batch_size=BATCH, verbose=0)[0] == pytest.approx(expected, rel=1e-5)
