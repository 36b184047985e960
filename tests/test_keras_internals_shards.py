"""Keras writes variables into files, and reads them from files, as keras_internals has it."""

import keras
import numpy as np
import pytest

from keras_rgemma.keras_internals import shards, variables

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "jax", reason="keras.distribution is for JAX"
)


@pytest.fixture(autouse=True)
def one_device():
    device = keras.distribution.list_devices()[:1]
    with keras.distribution.DataParallel(devices=device).scope():
        yield


def dense():
    layer = keras.layers.Dense(4)
    layer.build((None, 8))
    return layer


ARRAY = np.arange(32, dtype="float32").reshape(8, 4)


def laid_out(array, dtype, sharding):
    import jax

    return jax.device_put(array.astype(dtype), sharding)


def test_a_variable_takes_its_first_value_as_it_lies():
    with variables.uninitialized_variables():
        layer = dense()
    seen = []

    def value(shape, dtype, sharding):
        seen.append((tuple(shape), dtype))
        return laid_out(ARRAY, dtype, sharding)

    variables.initialize_with(layer.kernel, value)
    assert seen == [((8, 4), "float32")]
    layer.kernel.assign_add(ARRAY)
    np.testing.assert_array_equal(np.asarray(layer.kernel.value), 2 * ARRAY)


def test_files_get_and_give_the_values_of_variables_by_functions(tmp_path):
    model, read, written = keras.Sequential([keras.Input((8,)), dense()]), [], []

    def on_host(array):
        written.append(array.shape)
        return np.asarray(array) + 1

    def on_devices(array, dtype, sharding):
        read.append(array.shape)
        return laid_out(array, dtype, sharding)

    model.weights[0].assign(ARRAY)
    with shards.written_with(model.variables, on_host):
        model.save_weights(tmp_path / "m.weights.h5")
    with shards.read_with(model.variables, on_devices):
        model.load_weights(tmp_path / "m.weights.h5")
    assert set(written) == set(read) == {(8, 4), (4,)}
    np.testing.assert_array_equal(np.asarray(model.weights[0].value), ARRAY + 1)
    assert all(type(x) is keras.Variable for x in model.variables)
    assert not any("on_host" in vars(x) or "_on_host" in vars(x) for x in model.variables)
    model.weights[0].assign(ARRAY)
    np.testing.assert_array_equal(np.asarray(model.weights[0].value), ARRAY)
