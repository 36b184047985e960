"""Linear layers in int8 and int4 compute what the layers of Keras that they extend compute."""

import keras
import numpy as np
import pytest
from keras import ops

import tiny
from compiled import compiled
from gradients import gradients
from keras_rgemma.layers import rounded
from keras_rgemma.layers.block_diagonal import block_diagonal_dense
from keras_rgemma.layers.embedding import ReversibleEmbedding
from keras_rgemma.layers.linear import Linear

# Groups that divide the 16 rows, groups that do not, one group, and none.
CASES = [("int8", -1), *(("int4", size) for size in (4, 5, 8, 128, -1))]
LAYERS = {
    "linear": (lambda dtype: Linear(24, dtype=dtype), (2, 3, 16), keras.layers.Dense),
    "one row": (lambda dtype: Linear(24, dtype=dtype), (1, 1, 16), keras.layers.Dense),
    "odd": (lambda dtype: Linear(7, dtype=dtype), (2, 1, 16), keras.layers.Dense),
    "blocks": (
        lambda dtype: block_diagonal_dense(32, 4, "gate", dtype=dtype),
        (4, 2, 3, 8),
        keras.layers.EinsumDense,
    ),
    "blocks of one row": (
        lambda dtype: block_diagonal_dense(32, 4, "gate", dtype=dtype),
        (4, 1, 1, 8),
        keras.layers.EinsumDense,
    ),
}


def rounded_layer(name, mode, size, dtype):
    """A layer with random weights in a mode, its inputs, and Keras' class."""
    make, shape, cls = LAYERS[name]
    layer = make(dtype)
    layer.build(shape)
    layer.bias.assign(np.random.RandomState(1).normal(size=layer.bias.shape))
    layer.quantize(mode, config=rounded.rounding_config(mode, size))
    return layer, np.random.RandomState(0).normal(size=shape).astype("float32"), cls


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mode, size", CASES)
@pytest.mark.parametrize("name", LAYERS)
def test_outputs_are_those_of_keras(name, mode, size, dtype):
    layer, x, cls = rounded_layer(name, mode, size, dtype)
    theirs = compiled(lambda x: cls.quantized_call(layer, ops.cast(x, dtype)))(x)
    ours = compiled(lambda x: layer(ops.cast(x, dtype)))(x)
    tolerance = 1e-6 if dtype == "float32" else 2**-7
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("mode, size", [("int8", -1), ("int4", 5), ("int4", 8)])
@pytest.mark.parametrize("name", ["linear", "blocks"])
def test_gradients_are_those_of_keras(name, mode, size):
    layer, x, cls = rounded_layer(name, mode, size, "float32")
    shape = (*x.shape[:-1], 24 if name == "linear" else 8)
    weight = np.random.RandomState(2).normal(size=shape).astype("float32")
    (ours,) = gradients(lambda x: ops.sum(ops.multiply(layer(x), weight)), x)
    (theirs,) = gradients(lambda x: ops.sum(ops.multiply(cls.quantized_call(layer, x), weight)), x)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert np.abs(ours).max() > 0.1


def test_a_layer_may_have_a_map_of_policies():
    policies = keras.dtype_policies.DTypePolicyMap("float32")
    policies["one"] = "int4/8_from_float32"
    layer, x = Linear(8, dtype=policies, name="one"), np.ones((1, 2, 16), "float32")
    layer.build(x.shape)
    layer.kernel_scale.assign(np.ones(layer.kernel_scale.shape))
    theirs = tiny.numpy(keras.layers.Dense.quantized_call(layer, ops.convert_to_tensor(x)))
    np.testing.assert_allclose(tiny.numpy(layer(x)), theirs, rtol=1e-6)


def test_an_embedding_in_int4_rounds_its_inputs_where_keras_does():
    """A policy alone, without a config, asks for it."""
    embeddings = []
    for cls in (keras.layers.ReversibleEmbedding, ReversibleEmbedding):
        embedding = cls(12, 16, dtype="int4/8_from_float32")
        embedding.build()
        random = np.random.RandomState(0)
        embedding.load_own_variables(
            {
                "0": random.randint(-100, 100, (12, 8)).astype("int8"),
                "1": random.uniform(size=(12, 2)).astype("float32"),
                "2": random.randint(-3, 3, (12, 2)).astype("int8"),
                "3": np.repeat([0.0, 1.0], 8).astype("float32"),
            }
        )
        embeddings.append(embedding)
    x = np.random.RandomState(1).normal(size=(2, 16)).astype("float32")
    theirs, ours = (tiny.numpy(embedding(x, reverse=True)) for embedding in embeddings)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
