"""The linear maps with LoRA, as layers and as functions of arrays."""

import concurrent.futures

import keras
import numpy as np
import pytest

import compiled
import tiny
from keras_rgemma.layers.block_diagonal import block_diagonal_dense
from keras_rgemma.layers.linear import linear

SHAPES = {"linear": (2, 3, 6), "blocks": (2, 2, 3, 6)}
MODES = [None, "int8", "int4"]


def made(kind, mode=None, dtype="float32", lora=True):
    """A layer whose numbers are all drawn at random, and inputs for it."""
    keras.utils.set_random_seed(0)
    random = np.random.RandomState(1)
    if kind == "linear":
        layer = linear(8, 6, "layer", dtype)
    else:
        layer = block_diagonal_dense(12, 2, "layer", dtype)
    layer.build(SHAPES[kind])
    layer.bias.assign(random.normal(size=layer.bias.shape))
    if mode:
        layer.quantize(mode)
    if lora:
        layer.enable_lora(2, lora_alpha=3)
        layer.assign_lora(
            random.normal(size=layer.lora_kernel_a.shape),
            random.normal(size=layer.lora_kernel_b.shape),
            3.0,
        )
    inputs = random.normal(size=SHAPES[kind]).astype("float32")
    return layer, keras.ops.convert_to_tensor(inputs)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", SHAPES)
def test_a_call_within_a_call_has_lora_too(kind, mode):
    """As that of another thread has, which begins before this one ends."""
    layer, inputs = made(kind, mode)
    expected = tiny.numpy(layer(inputs))
    found = []

    def probe(x):
        layer.activation = None
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            found.append(tiny.numpy(thread.submit(layer, inputs).result()))
        return x

    layer.activation = probe
    np.testing.assert_array_equal(tiny.numpy(layer(inputs)), expected)
    np.testing.assert_array_equal(found, [expected])


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "plain"])
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "bfloat16"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", SHAPES)
def test_a_map_bound_to_arrays_is_that_of_the_layer(kind, mode, dtype, lora):
    layer, inputs = made(kind, mode, dtype, lora)
    inputs = keras.ops.cast(inputs, layer.compute_dtype)
    expected = layer(inputs)
    found = layer.linear_map()(inputs)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(tiny.numpy(found), tiny.numpy(expected))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", SHAPES)
def test_a_map_is_a_function_of_its_arrays(kind, mode):
    layer, inputs = made(kind, mode)
    expected = tiny.numpy(layer(inputs))
    parts = layer.linear_map_parts()
    assert (parts.quantization_mode, parts.lora_scale) == (mode, 1.5)
    assert {id(x) for x in parts.variables.values()} == {id(weight) for weight in layer.weights}
    arrays = {name: keras.ops.copy(x.value) for name, x in parts.variables.items()}
    for weight in layer.weights:
        weight.assign(keras.ops.zeros(weight.shape, weight.dtype))
    run = compiled.compiled(lambda arrays, inputs: layer.linear_map(arrays)(inputs))
    # Programs add up in another order.
    np.testing.assert_allclose(run(arrays, inputs), expected, rtol=1e-5, atol=1e-5)
