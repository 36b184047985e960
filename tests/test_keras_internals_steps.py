"""Keras still loses the weights of a call that fails on JAX; `keras_internals.steps` keeps them."""

import keras
import numpy as np
import pytest

import tiny
from keras_rgemma.keras_internals.steps import RecoverableSteps, recovers

X, Y = np.ones((6, 8), "float32"), np.ones((6, 1), "float32")


class Recoverable(RecoverableSteps, keras.Model):
    fit = recovers(keras.Model.fit)
    evaluate = recovers(keras.Model.evaluate)


class Fails(keras.callbacks.Callback):
    """Raises at the second batch."""

    def on_train_batch_begin(self, batch, logs=None):
        if batch == 1:
            raise RuntimeError("a callback that fails")

    on_test_batch_begin = on_train_batch_begin


def compiled(cls):
    x = keras.Input((8,))
    model = cls(x, keras.layers.Dense(1, kernel_initializer="ones")(x))
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model.fit(X[:2], Y[:2], verbose=0)
    return model


def test_a_model_keeps_the_values_after_the_last_whole_step():
    model, expected = compiled(Recoverable), compiled(keras.Model)
    expected.fit(X[:2], Y[:2], verbose=0)
    for call in (model.fit, model.evaluate):
        with pytest.raises(RuntimeError, match="a callback that fails"):
            call(X, Y, batch_size=2, verbose=0, callbacks=[Fails()])
        for variable, other in zip(model.weights, expected.weights, strict=True):
            np.testing.assert_allclose(tiny.numpy(variable), tiny.numpy(other), rtol=1e-6)
        assert int(model.optimizer.iterations) == 2
    assert np.isfinite(model.train_on_batch(X, Y)).all()


def test_keras_alone_loses_them_on_jax():
    if keras.config.backend() != "jax":
        pytest.skip("Keras on JAX alone takes the values out of the variables")
    model = compiled(keras.Model)
    with pytest.raises(RuntimeError, match="a callback that fails"):
        model.evaluate(X, Y, batch_size=2, verbose=0, callbacks=[Fails()])
    with pytest.raises(Exception, match="NoneType"):  # once it works, RecoverableSteps can go
        model.predict(X, verbose=0)
