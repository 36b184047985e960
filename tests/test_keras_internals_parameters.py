"""Keras and PyTorch still do what the parameters of a model need of them."""

import copy

import keras
import keras_hub
import numpy as np
import pytest

from keras_rgemma.keras_internals import layers
from keras_rgemma.keras_internals.parameters import ParametersOfVariables, normal_tensors

IS_TORCH = keras.config.backend() == "torch"
on_torch = pytest.mark.skipif(not IS_TORCH, reason="modules of PyTorch")


class Backbone(ParametersOfVariables, keras_hub.models.Backbone):
    def __init__(self):
        x = keras.Input((3,), name="x")
        self.dense = keras.layers.Dense(2, name="dense")
        super().__init__(inputs={"x": x}, outputs=self.dense(x))


def test_a_layer_that_is_tracked_belongs_to_a_model():
    model, other = Backbone(), keras.layers.Dense(1, name="other")
    other.build((None, 2))
    layers.track_layer(model, other)
    layers.track_layer(model, other)
    assert [x.path for x in model.weights] == [
        "dense/kernel",
        "dense/bias",
        "other/kernel",
        "other/bias",
    ]


def test_nothing_is_tracked_before_the_constructor_of_keras():
    layers.track_layer(object(), keras.layers.Dense(1))


def test_the_block_runs():
    with normal_tensors():
        assert Backbone().weights


@on_torch
def test_the_parameters_of_kerashub_are_empty_without_the_mixin():
    backbone = keras_hub.models.GemmaBackbone(
        vocabulary_size=8,
        num_layers=1,
        num_query_heads=1,
        num_key_value_heads=1,
        hidden_dim=4,
        intermediate_dim=8,
        head_dim=4,
    )
    # If this fails, KerasHub has mended it, and the mixin may be needless.
    assert list(backbone.parameters()) == []


@on_torch
def test_parameters_are_collected_when_pytorch_asks():
    model = Backbone()

    def paths():
        named = dict(model.named_parameters())
        by_id = {id(x.value): x.path for x in model.weights}
        assert {id(x) for x in named.values()} == set(by_id)
        assert list(named) == [f"_torch_params.{path}" for path in by_id.values()]
        assert list(model.state_dict()) == list(named)
        return list(by_id.values())

    before = paths()
    model.dense.enable_lora(1)
    assert set(paths()) - set(before) == {"dense/lora_kernel_a", "dense/lora_kernel_b"}
    layers.remove_variables(model.dense, ["lora_kernel_a", "lora_kernel_b"])
    model.dense.lora_enabled = False
    assert paths() == before
    model.quantize("int8")
    assert "dense/kernel_scale" in paths()


@on_torch
def test_a_conversion_is_checked_before_any_parameter_changes():
    import torch

    model = Backbone()
    assert model.to(torch.float32) is model
    with pytest.raises(ValueError, match="float16"):
        model.half()
    assert {x.dtype for x in model.parameters()} == {torch.float32}


@on_torch
def test_changes_of_a_tensor_are_counted():
    import torch

    from keras_rgemma.keras_internals.torch import change_count

    tensor = torch.nn.Parameter(torch.zeros(2))
    counts = [change_count(tensor)]
    optimizers = [torch.optim.SGD([tensor], 0.1), torch.optim.AdamW([tensor], 0.1, foreach=True)]

    def step(optimizer):
        tensor.grad = torch.ones(2)
        optimizer.step()

    def in_inference_mode():
        with torch.inference_mode():
            tensor.mul_(2.0)

    def without_gradients():
        with torch.no_grad():
            tensor.copy_(torch.ones(2))

    changes = [lambda x=x: step(x) for x in optimizers] + [without_gradients, in_inference_mode]
    for change in changes:
        change()
        counts.append(change_count(tensor))
    assert counts == sorted(set(counts))
    with torch.inference_mode():
        assert change_count(torch.zeros(2)) is None


@on_torch
def test_tensors_of_inference_mode_are_normal_in_the_block():
    import torch

    with torch.inference_mode():
        outside = torch.zeros(2)
        with normal_tensors():
            inside = torch.nn.Parameter(torch.zeros(2))
        assert torch.is_inference_mode_enabled()
    assert (outside.is_inference(), inside.is_inference()) == (True, False)
    (inside * 2).sum().backward()
    assert inside.grad is not None


@on_torch
def test_the_device_of_keras_is_known():
    import torch

    from keras_rgemma.keras_internals.torch import default_device

    assert default_device() == keras.ops.zeros(()).device.type
    with keras.device("meta"):
        assert default_device() == torch.device("meta").type


@on_torch
@pytest.mark.parametrize("rows", [1, 2, 17])
def test_int8_matrices_are_multiplied(rows):
    import torch

    from keras_rgemma.keras_internals.torch import int_mm

    x, kernel = (torch.randint(-127, 128, shape).to(torch.int8) for shape in ((rows, 9), (9, 5)))
    for laid_out in (kernel, kernel.mT.contiguous().mT):
        product = int_mm(x, laid_out)
        assert product.dtype == torch.int32
        assert torch.equal(product, x.int() @ kernel.int())


@on_torch
@pytest.mark.parametrize("has_bias", [False, True])
def test_onednn_multiplies_matrices_of_any_strides(has_bias):
    import torch

    from keras_rgemma.keras_internals.torch import onednn_product

    x, kernel = torch.rand(7, 9), torch.rand(9, 5)
    bias = torch.rand(10)[::2] if has_bias else None
    expected = x @ kernel + (bias if has_bias else 0)
    for laid_out_x in (x, x.mT.contiguous().mT):
        for laid_out in (kernel, kernel.mT.contiguous().mT):
            torch.testing.assert_close(onednn_product(laid_out_x, laid_out, bias), expected)


@pytest.mark.skipif(keras.config.backend() != "jax", reason="arrays of JAX")
def test_an_array_is_turned_and_nobody_sees_it():
    import jax.numpy as jnp

    from keras_rgemma.keras_internals import jax as internals

    layer = keras.layers.Dense(3)
    layer.build((None, 2))
    kernel, bias = layer.kernel, layer.bias
    before = np.array(kernel)
    internals.turn(kernel)
    internals.turn(kernel)
    assert type(kernel) is internals.TurnedVariable
    arrays, is_turned = internals.arrays_of([kernel, bias])
    assert is_turned == (True, False)
    np.testing.assert_array_equal(arrays[0], before.T)
    assert arrays[1] is bias.value
    assert kernel.shape == (2, 3) and kernel in layer.weights
    np.testing.assert_array_equal(kernel, before)
    np.testing.assert_array_equal(layer(np.eye(2)), before)
    kernel.assign(2 * before)
    np.testing.assert_array_equal(internals.arrays_of([kernel])[0][0], 2 * before.T)
    copied = copy.deepcopy(kernel)
    copied.assign(before)
    with keras.StatelessScope(state_mapping=[(kernel, jnp.ones((2, 3)))]):
        assert float(kernel.value.sum()) == 6
    kernel._value = None  # as Keras does while it trains
    assert kernel._value is None
    kernel.assign(3 * before)
    kernel.turn_back()
    assert type(kernel) is keras.Variable
    np.testing.assert_array_equal(kernel, 3 * before)
    np.testing.assert_array_equal(copied, before)


@pytest.mark.skipif(keras.config.backend() != "jax", reason="arrays of JAX")
def test_a_first_value_lies_turned():
    from keras_rgemma.keras_internals import jax as internals
    from keras_rgemma.keras_internals import variables

    with variables.uninitialized_variables():
        layer = keras.layers.Dense(3)
        layer.build((None, 2))
    array = np.arange(6, dtype="float32").reshape(3, 2)
    assert internals.initialize_turned(layer.kernel, array)
    assert type(layer.kernel) is internals.TurnedVariable
    np.testing.assert_array_equal(layer.kernel, array.T)
    assert not internals.initialize_turned(layer.kernel, array)  # of another class now
    layer.kernel.turn_back()
    np.testing.assert_array_equal(layer.kernel, array.T)


@pytest.mark.skipif(keras.config.backend() != "jax", reason="arrays of JAX")
def test_an_array_of_jax_is_made_before_the_other_may_go():
    from keras_rgemma.keras_internals.jax import device_array

    array = np.arange(6, dtype="int8")[1:]  # not aligned, so it is copied
    found = device_array(array)
    array[:] = 0
    np.testing.assert_array_equal(found, np.arange(1, 6))
    assert found.dtype == "int8"


@pytest.mark.skipif(keras.config.backend() != "torch", reason="a mode of PyTorch")
@pytest.mark.parametrize("mode", ["no_grad", "inference_mode"])
def test_what_reads_or_makes_numbers_is_refused(mode):
    import torch

    from keras_rgemma.keras_internals.torch import WithoutHost

    with getattr(torch, mode)():
        x = torch.ones(3)
        refused = {
            "reads": [
                lambda: x.sum().item(),
                lambda: float(x.sum()),
                lambda: bool(x.sum() > 0),
                lambda: x.nonzero(),
                lambda: x[x > 0],
            ],
            "makes": [lambda: torch.tensor(2.0)],
            "between devices": [lambda: x.to("meta")],
        }
        for message, functions in refused.items():
            for function in functions:
                with WithoutHost(), pytest.raises(RuntimeError, match=message):
                    function()
        with WithoutHost():
            y = torch.where(x > 0, x, 2 * x)[torch.arange(2)].to(torch.bfloat16).reshape(1, 2)
        assert y.tolist() == [[1.0, 1.0]]
