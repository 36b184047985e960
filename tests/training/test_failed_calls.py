"""A call that raises or is interrupted leaves the values after the last whole step."""

import operator
import os
import signal
import sys
import threading
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

import tiny
from keras_rgemma import RGemmaCausalLM
from keras_rgemma.finetuning import LongTexts

ROWS, BATCH, BATCHES = 8, 2, 4

pytestmark = pytest.mark.usefixtures("default_handler")


def prepared(rows=ROWS):
    texts = [tiny.SENTENCES[i % len(tiny.SENTENCES)][i:] for i in range(rows)]
    return keras.tree.map_structure(tiny.numpy, tiny.preprocessor(16)(texts))


def rows_of(batch):
    return slice(batch * BATCH, (batch + 1) * BATCH)


def batches(count=BATCHES, fails=False):
    """A dataset of the first batches, at whose end it raises or not."""
    data = prepared()

    def generator():
        for batch in range(count):
            yield keras.tree.map_structure(operator.itemgetter(rows_of(batch)), data)
        if fails:
            raise OSError("a broken file")

    signature = keras.tree.map_structure(
        lambda array: tf.TensorSpec((BATCH, *array.shape[1:]), array.dtype), data
    )
    return tf.data.Dataset.from_generator(generator, output_signature=signature)


class Values:
    """The values of a model's weights, optimizer and metrics."""

    def __init__(self, lm):
        groups = (lm.weights, lm.optimizer.variables, lm.metrics_variables)
        self.groups = [[tiny.numpy(variable) for variable in group] for group in groups]

    def assert_are(self, other, with_metrics=True):
        for group in range(3 if with_metrics else 2):
            for mine, expected in zip(self.groups[group], other.groups[group], strict=True):
                np.testing.assert_allclose(mine, expected, 1e-6, 1e-7)


class Model:
    """A model, compiled once, that can be put back to its beginning."""

    def __init__(self, cls=RGemmaCausalLM, **settings):
        keras.utils.set_random_seed(0)
        self.lm = cls(tiny.randomize(tiny.backbone()), tiny.preprocessor(16))
        self.lm.compile(keras.optimizers.SGD(0.1, momentum=0.9), **settings)
        self.lm.optimizer.build(self.lm.trainable_variables)
        self.lm.evaluate(batches(1), verbose=0)  # metrics are built
        variables = [*self.lm.variables, *self.lm.optimizer.variables]
        self.beginning = [(variable, tiny.numpy(variable)) for variable in variables]

    def begin(self):
        for variable, value in self.beginning:
            variable.assign(value)
        self.lm.reset_metrics()
        return self.lm


@pytest.fixture(scope="module")
def model():
    return Model()


@pytest.fixture(scope="module")
def trajectory(model):
    """The values after 0, 1, ... whole steps of one epoch."""
    lm = model.begin()
    values = [Values(lm)]
    for count in range(1, BATCHES + 1):
        model.begin().fit(batches(count), verbose=0)
        values.append(Values(lm))
    return values


def assert_usable(lm, tmp_path):
    """What people do next: write, save, look, train."""
    ids = {"token_ids": np.array([[2, 300, 301]])}
    assert lm.generate(ids, max_new_tokens=3, stop_token_ids=None)["token_ids"].shape == (1, 6)
    lm.save_weights(tmp_path / "after.weights.h5")
    lm.save_to_preset(tmp_path / "preset")
    assert np.isfinite(lm.evaluate(batches(1), verbose=0)).all()
    assert np.isfinite(lm.fit(batches(), verbose=0).history["loss"]).all()


class Raises(keras.callbacks.Callback):
    """Raises in one of its methods at one batch."""

    def __init__(self, method, batch):
        super().__init__()

        def fail(number, logs=None):
            if number == batch:
                raise RuntimeError("a callback that fails")

        setattr(self, method, fail)


FAILED_FITS = [
    ({"x": lambda: batches(0, fails=True)}, 0),
    ({"x": lambda: batches(2, fails=True)}, 2),
    ({"x": batches, "callbacks": lambda: [Raises("on_train_batch_begin", 0)]}, 0),
    ({"x": batches, "callbacks": lambda: [Raises("on_train_batch_begin", 2)]}, 2),
    ({"x": batches, "callbacks": lambda: [Raises("on_train_batch_end", 1)]}, 2),
    ({"x": batches, "callbacks": lambda: [Raises("on_epoch_end", 0)]}, 4),
    ({"x": batches, "validation_data": lambda: batches(1, fails=True)}, 4),
    (
        {
            "x": batches,
            "validation_data": batches,
            "callbacks": lambda: [Raises("on_test_batch_end", 1)],
        },
        4,
    ),
]


@pytest.mark.parametrize("arguments, steps", FAILED_FITS)
def test_a_fit_that_raises(model, trajectory, tmp_path, arguments, steps):
    lm = model.begin()
    with pytest.raises(Exception, match=r"a broken file|a callback that fails"):
        lm.fit(**{name: make() for name, make in arguments.items()}, verbose=0)
    Values(lm).assert_are(trajectory[steps], with_metrics="validation_data" not in arguments)
    assert_usable(lm, tmp_path)


@pytest.mark.parametrize("name", ["evaluate", "predict"])
@pytest.mark.parametrize("place", ["data", "first batch", "later batch"])
def test_an_evaluation_that_raises(model, trajectory, tmp_path, name, place):
    lm = model.begin()
    event = {"evaluate": "test", "predict": "predict"}[name]
    with pytest.raises(Exception, match=r"a broken file|a callback that fails"):
        if place == "data":
            getattr(lm, name)(batches(2, fails=True), verbose=0)
        else:
            batch = 0 if place == "first batch" else 2
            callbacks = [Raises(f"on_{event}_batch_end", batch)]
            getattr(lm, name)(batches(), verbose=0, callbacks=callbacks)
    Values(lm).assert_are(trajectory[0], with_metrics=False)
    if name == "evaluate":
        found = Values(lm)
        lm.evaluate(batches(1 if place == "first batch" else 3 - (place == "data")), verbose=0)
        found.assert_are(Values(lm))
    assert_usable(lm, tmp_path)


class Interrupts(keras.callbacks.Callback):
    """Sends SIGINT some time after a batch has begun."""

    def __init__(self, batch, seconds):
        super().__init__()
        self.batch, self.seconds = batch, seconds

    def on_train_batch_begin(self, batch, logs=None):
        if batch == self.batch:
            threading.Thread(target=self.interrupt, daemon=True).start()

    on_test_batch_begin = on_predict_batch_begin = on_train_batch_begin

    def interrupt(self):
        time.sleep(self.seconds)
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("batch", [0, 2])
@pytest.mark.parametrize("seconds", [0.0, 0.01])
def test_ctrl_c_in_fit(model, trajectory, tmp_path, batch, seconds):
    lm, handler = model.begin(), signal.getsignal(signal.SIGINT)
    if batch == 0:
        lm.train_function = None  # so that the step is compiled again
    with pytest.raises(KeyboardInterrupt):
        # More epochs than a signal can be late.
        lm.fit(batches().repeat(500), verbose=0, callbacks=[Interrupts(batch, seconds)])
    assert signal.getsignal(signal.SIGINT) is handler
    steps = int(lm.optimizer.iterations)
    found, expected = Values(lm), trajectory[min(steps, BATCHES)]
    if steps > BATCHES:
        model.begin().fit(batches().repeat().take(steps), verbose=0)
        expected = Values(lm)
    found.assert_are(expected)
    assert_usable(lm, tmp_path)


def test_ctrl_c_while_keras_reads_logs(model, trajectory, tmp_path, monkeypatch):
    lm, handler = model.begin(), signal.getsignal(signal.SIGINT)
    is_tensor, sent = keras.src.backend.is_tensor, []

    def interrupts(x):
        if sys._getframe(1).f_code.co_name == "pythonify_logs" and not sent:
            sent.append(True)
            os.kill(os.getpid(), signal.SIGINT)
        return is_tensor(x)

    monkeypatch.setattr(keras.src.backend, "is_tensor", interrupts)
    for run in (lm.fit, lm.evaluate):
        sent.clear()
        with pytest.raises(KeyboardInterrupt):
            run(batches(), verbose=0)
        assert sent
    assert signal.getsignal(signal.SIGINT) is handler
    assert 1 <= int(lm.optimizer.iterations) <= BATCHES
    Values(lm).assert_are(trajectory[int(lm.optimizer.iterations)], with_metrics=False)
    assert_usable(lm, tmp_path)


@pytest.mark.parametrize("name", ["evaluate", "predict"])
@pytest.mark.parametrize("batch", [0, 2])
def test_ctrl_c_in_an_evaluation(model, trajectory, tmp_path, name, batch):
    lm = model.begin()
    lm.test_function = lm.predict_function = None
    with pytest.raises(KeyboardInterrupt):
        callbacks = [Interrupts(batch, 0.002)]
        getattr(lm, name)(batches().repeat(500), verbose=0, callbacks=callbacks)
    Values(lm).assert_are(trajectory[0], with_metrics=False)
    assert_usable(lm, tmp_path)


class Forgotten:
    """Sends SIGINT when it is deleted, where Python forgets what is raised."""

    def __del__(self):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("name", ["fit", "evaluate", "predict"])
@pytest.mark.parametrize("event", ["batch_begin", "batch_end", "end"])
def test_a_ctrl_c_that_python_forgets(model, trajectory, tmp_path, name, event):
    def delete(*args, **kwargs):
        if event == "end" or args[0] == 2:
            Forgotten()

    lm, callback = model.begin(), keras.callbacks.Callback()
    kind = {"fit": "train", "evaluate": "test", "predict": "predict"}[name]
    setattr(callback, f"on_{kind}_{event}", delete)
    with pytest.raises(KeyboardInterrupt):
        getattr(lm, name)(batches(), verbose=0, callbacks=[callback])
    steps = {"batch_begin": 3, "batch_end": BATCHES, "end": BATCHES}[event] if name == "fit" else 0
    Values(lm).assert_are(trajectory[steps], with_metrics=False)
    assert_usable(lm, tmp_path)


def test_steps_of_one_execution(trajectory, tmp_path):
    if keras.config.backend() == "torch":
        pytest.skip("Keras on PyTorch has one step an execution")
    model = Model(steps_per_execution=2)
    lm = model.begin()
    with pytest.raises(Exception, match="a broken file"):
        lm.fit(batches(3, fails=True), verbose=0)
    assert int(lm.optimizer.iterations) == 2
    Values(lm).assert_are(trajectory[2])
    model.begin().fit(batches(3), verbose=0)  # an execution of two steps and one of one
    Values(lm).assert_are(trajectory[3])
    assert lm.predict(batches(3), verbose=0).shape[0] == 3 * BATCH
    assert_usable(lm, tmp_path)


@keras.saving.register_keras_serializable("test_failed_calls")
class Fragile(keras.metrics.Mean):
    """A metric that no batch but one of two rows may reach."""

    def update_state(self, y_true, y_pred, sample_weight=None):
        if y_true.shape[0] != BATCH:
            raise RuntimeError("a metric that fails")
        return super().update_state(1.0)


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_a_metric_that_raises(run_eagerly, trajectory, tmp_path):
    if run_eagerly and keras.config.backend() == "jax":
        pytest.skip("compiled or not, a step of JAX changes variables at its end")
    lm = Model(weighted_metrics=[Fragile()], run_eagerly=run_eagerly).begin()
    x, y, weight = keras.tree.map_structure(lambda array: array[: 2 * BATCH + 1], prepared())
    with pytest.raises(RuntimeError, match="a metric that fails"):
        lm.fit(x, y, sample_weight=weight, batch_size=BATCH, shuffle=False, verbose=0)
    # A graph of TensorFlow is made for any number of rows, before the first step.
    is_graph = keras.config.backend() == "tensorflow" and not run_eagerly
    found, expected = Values(lm), trajectory[0 if is_graph else 2]
    for group in range(2):
        for mine, like in zip(found.groups[group], expected.groups[group], strict=True):
            np.testing.assert_allclose(mine, like, 1e-5, 1e-6)
    assert_usable(lm, tmp_path)


def test_single_batches(model, trajectory, tmp_path):
    lm = model.begin()
    x, y, weight = prepared(2)
    wrong = {**x, "token_ids": x["token_ids"][:, :3]}
    for call in (lm.train_on_batch, lm.test_on_batch):
        with pytest.raises(Exception, match=r"(?i)shape|size|dimension|broadcast"):
            call(wrong, y, sample_weight=weight)
        Values(lm).assert_are(trajectory[0], with_metrics=False)
    assert_usable(lm, tmp_path)


class FailsOnTheDevice(RGemmaCausalLM):
    """A model whose third step fails while it runs, as for want of memory."""

    backbone_cls = None  # else KerasHub takes it for the class of presets

    calls = 0

    def compute_loss(self, *args, **kwargs):
        import jax

        def count():
            FailsOnTheDevice.calls += 1
            if FailsOnTheDevice.calls == 3:
                raise MemoryError("RESOURCE_EXHAUSTED")
            return np.float32(0)

        zero = jax.pure_callback(count, jax.ShapeDtypeStruct((), "float32"))
        return super().compute_loss(*args, **kwargs) + zero


def test_an_error_of_the_device(trajectory, tmp_path):
    if keras.config.backend() != "jax":
        pytest.skip("elsewhere a step changes variables in place, at its end")
    lm = Model(FailsOnTheDevice).begin()
    FailsOnTheDevice.calls = 0
    lm.save_weights(tmp_path / "before.weights.h5")
    with pytest.raises(Exception, match=r"gone.*`load_weights`|RESOURCE_EXHAUSTED") as error:
        lm.fit(batches(), verbose=0)
    assert "RESOURCE_EXHAUSTED" in str(error.value)
    if "gone" in str(error.value):
        lm = Model().begin()
        lm.load_weights(tmp_path / "before.weights.h5")
    else:
        Values(lm).assert_are(trajectory[2])
    FailsOnTheDevice.calls = 3
    assert_usable(lm, tmp_path)


def test_long_texts_go_on_after_an_error(tmp_path):
    lm = tiny.randomize(tiny.causal_lm(sequence_length=16))
    long = LongTexts(lm, batch_size=2)
    x, y, weight = long.pieces([" ".join(tiny.SENTENCES)] * 2, length=16)
    long.compile(keras.optimizers.SGD(0.1))
    before = [tiny.numpy(variable) for variable in lm.weights]
    with pytest.raises(RuntimeError, match="a callback that fails"):
        long.fit(x, y, sample_weight=weight, callbacks=[Raises("on_train_batch_end", 1)], verbose=0)
    assert any((tiny.numpy(w) != v).any() for w, v in zip(lm.weights, before, strict=True))
    assert np.isfinite(long.fit(x, y, sample_weight=weight, verbose=0).history["loss"]).all()
    ids = {"token_ids": np.array([[2, 300, 301]])}
    assert lm.generate(ids, max_new_tokens=3, stop_token_ids=None)["token_ids"].shape == (1, 6)


def test_fit_in_another_thread_sets_no_handler(model, trajectory):
    lm, handler, errors = model.begin(), signal.getsignal(signal.SIGINT), []

    def run():
        try:
            lm.fit(batches(), verbose=0)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while thread.is_alive():
        assert signal.getsignal(signal.SIGINT) is handler
    assert not errors
    Values(lm).assert_are(trajectory[BATCHES])
