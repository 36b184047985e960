"""Keras still takes an adapter of batches, and calls it as keras_internals needs it."""

import types
import warnings

import keras
import numpy as np
import pytest

from backend_independent import backend_independent
from keras_rgemma.keras_internals import data_adapters, preprocessors


class Batches:
    """Batches of two rows; counts what is read, and may fail."""

    def __init__(self, count=3, fails_at=None, num_batches=None):
        self.values = [np.full((2, 1), i, "float32") for i in range(count)]
        self.first = [(value, value) for value in self.values[:2]]
        self.num_batches = num_batches
        self.fails_at = fails_at
        self.forgotten = 0

    def __iter__(self):
        for i, value in enumerate(self.values):
            if i == self.fails_at:
                raise KeyError("own")
            yield value, value

    def forget(self):
        self.forgotten += 1


class Model(keras.Model):
    """A functional model whose attribute `seen` lists a value of each batch."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        self.seen.append(float(keras.ops.convert_to_numpy(x)[0, 0]))
        return super().compute_loss(x, y, y_pred, sample_weight, training)


def compiled(is_seen=False):
    x = keras.Input((1,))
    cls = Model if is_seen else keras.Model
    model = cls(x, keras.layers.Dense(1, kernel_initializer="ones")(x))
    model.seen = []
    model.compile(keras.optimizers.SGD(0.0), "mse", run_eagerly=is_seen)
    return model


@pytest.mark.skipif(keras.config.backend() == "jax", reason="values cannot be seen in a program")
@pytest.mark.parametrize("num_batches", [None, 3])
def test_each_epoch_reads_all_batches_in_order_and_quietly(num_batches):
    model = compiled(is_seen=True)
    adapter = data_adapters.BatchesAdapter(Batches(num_batches=num_batches), warns_of_end=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.fit(adapter, epochs=3, validation_data=adapter, shuffle=True, verbose=0)
        model.evaluate(adapter, verbose=0)
    assert model.seen[-21:] == 7 * [0, 1, 2]


def test_predictions_are_in_order():
    model = compiled()
    adapter = data_adapters.BatchesAdapter(Batches(5), warns_of_end=False)
    found = model.predict(adapter, verbose=0)
    np.testing.assert_allclose(found[:, 0], np.repeat(range(5), 2))


def test_keras_warns_of_the_end_where_it_should():
    model = compiled()
    adapter = data_adapters.BatchesAdapter(Batches())
    with pytest.warns(UserWarning, match="ran out of data"):
        model.fit(adapter, steps_per_epoch=4, verbose=0)
    adapter = data_adapters.BatchesAdapter(Batches(), warns_of_end=False)
    model.fit(adapter, verbose=0)
    adapter.close()
    with pytest.warns(UserWarning, match="ran out of data"):
        warnings.warn("Your input ran out of data", stacklevel=1)


def test_the_error_of_a_source_is_kept():
    model = compiled()
    adapter = data_adapters.BatchesAdapter(Batches(fails_at=2))
    with pytest.raises(Exception, match="own"):  # of another class on TensorFlow
        model.fit(adapter, verbose=0)
    assert isinstance(adapter.error, KeyError)


def test_a_source_hears_of_epochs():
    model = compiled()
    calls, batches = [], Batches()
    names = ("on_epoch_begin", "on_epoch_end")
    source = types.SimpleNamespace(**{name: lambda name=name: calls.append(name) for name in names})
    adapter = data_adapters.BatchesAdapter(batches, source, warns_of_end=False)
    model.fit(adapter, epochs=2, verbose=0)
    assert calls.count("on_epoch_begin") >= 2
    assert calls.count("on_epoch_end") == batches.forgotten >= 2
    assert calls[-1] == "on_epoch_end"


@backend_independent
def test_a_pipeline_of_grain_is_noticed():
    grain = pytest.importorskip("grain")
    assert not preprocessors.runs_in_grain()
    assert list(grain.MapDataset.source([0]).map(lambda _: preprocessors.runs_in_grain())) == [True]
