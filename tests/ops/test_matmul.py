"""Every implementation of the product of floats is right to the rounding of its dtype."""

import importlib
import io

import keras
import numpy as np
import pytest
from keras import ops

import keras_rgemma
from compiled import compiled
from gradients import gradients
from keras_rgemma.ops.cross_entropy import cross_entropy
from keras_rgemma.ops.matmul import matmul, reference

BACKEND = importlib.import_module(f"keras_rgemma.ops.matmul.{keras.config.backend()}")
ROUNDING = {"float32": 2.0**-22, "bfloat16": 2.0**-8, "float16": 2.0**-10}


def arrays(shape, transpose, dtype):
    """Random arrays that `dtype` holds exactly."""
    random = np.random.default_rng(0)
    shapes = (*shape, 24), ((7, 24) if transpose else (24, 7)), (*shape, 7)
    small = [random.integers(-16, 17, shape).astype("float32") / 8 for shape in shapes]
    return small if dtype != "float32" else [random.normal(size=x.shape).astype("f") for x in small]


@pytest.mark.parametrize("implementation", sorted(BACKEND.IMPLEMENTATIONS))
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("shape", [(1,), (5,), (1, 1), (2, 3)])
def test_products_and_gradients(implementation, dtype, transpose, has_bias, shape):
    x, kernel, weight = arrays(shape, transpose, dtype)
    biases = [np.arange(7, dtype="float32")] if has_bias else []

    def product(x, kernel, *biases):
        arguments = [ops.cast(y, dtype) for y in (x, kernel, *biases)]
        return matmul(*arguments, transpose_kernel=transpose, implementation=implementation)

    def loss(*arguments):
        return ops.sum(ops.multiply(ops.cast(product(*arguments), "float32"), weight))

    def check(found, expected):
        # The sums round at the size of their terms, not of their result.
        tolerance = ROUNDING[dtype] * (1 + np.abs(expected).max())
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)

    expected = reference.matmul(x, kernel, *biases or [None], transpose)
    check(compiled(product)(x, kernel, *biases), expected)
    found = gradients(loss, x, kernel, *biases)
    rows, upstream = x.reshape(-1, 24), weight.reshape(-1, 7)
    check(found[0], reference.matmul(weight, kernel, None, not transpose))
    expected = reference.matmul(rows.T, upstream)
    check(found[1], expected.T if transpose else expected)
    if has_bias:
        check(found[2], upstream.sum(axis=0))


@pytest.mark.skipif(keras.config.backend() != "jax", reason="a form of JAX")
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("shape", [(1,), (2, 3)])
def test_a_matrix_on_the_left(dtype, shape, monkeypatch):
    monkeypatch.setattr(BACKEND, "LONG_ROW", 8)
    test_products_and_gradients("float32_sums", dtype, True, True, shape)


@pytest.mark.parametrize("implementation", sorted(BACKEND.IMPLEMENTATIONS))
def test_nothing_comes_of_no_rows(implementation):
    run = compiled(lambda x, kernel: matmul(x, kernel, implementation=implementation))
    assert run(np.zeros((2, 0, 3), "float32"), np.ones((3, 4), "float32")).shape == (2, 0, 4)


@pytest.mark.skipif(keras.config.backend() != "jax", reason="exports of JAX")
@pytest.mark.parametrize("implementation", sorted(BACKEND.IMPLEMENTATIONS))
def test_the_number_of_rows_may_be_a_symbol(implementation):
    import jax
    from jax import export

    def product(x, kernel):
        return matmul(x, kernel, implementation=implementation)

    (rows,) = export.symbolic_shape("b")
    arguments = [jax.ShapeDtypeStruct(shape, "bfloat16") for shape in ((rows, 3), (3, 4))]
    exported = export.export(jax.jit(product))(*arguments)
    for count in (1, 5):
        x, kernel = (np.ones(shape, "bfloat16") for shape in ((count, 3), (3, 4)))
        np.testing.assert_array_equal(exported.call(x, kernel), 3 * np.ones((count, 4)))


ON_TORCH = pytest.mark.skipif(keras.config.backend() != "torch", reason="choices of PyTorch")


@ON_TORCH
@pytest.mark.parametrize("implementation", ["rows", "onednn"])
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("parts", [1, 2, 3, 16])
def test_rows_without_gradients(implementation, dtype, transpose, has_bias, parts, monkeypatch):
    import torch

    monkeypatch.setattr(BACKEND, "PARTS", parts)
    monkeypatch.setattr(BACKEND, "SMALLEST", 0)
    BACKEND._kept_parts.cache_clear()
    for rows in (0, 1, 2):
        x, kernel, _ = arrays((rows, 1), transpose, dtype)
        bias = np.arange(7, dtype="float32") if has_bias else None
        tensors = [None if y is None else ops.cast(y, dtype) for y in (x, kernel, bias)]
        expected = reference.matmul(x, kernel, bias, transpose)
        tolerance = 2 * ROUNDING[dtype] * (1 + np.abs(expected).max(initial=0))
        for turned in (False, True):  # as a view of a matrix that lies the other way
            if turned:
                tensors[1] = tensors[1].mT.contiguous().mT
            for mode in (torch.inference_mode, torch.no_grad):
                with mode():
                    y = matmul(*tensors, transpose_kernel=transpose, implementation=implementation)
                np.testing.assert_allclose(y.float(), expected, rtol=0, atol=tolerance)
    BACKEND._kept_parts.cache_clear()


@ON_TORCH
def test_products_with_onednn_have_second_derivatives():
    import torch

    arguments = tuple(torch.rand(shape) for shape in ((3, 4), (4, 5), (5,)))

    def loss(x, kernel, bias):
        return matmul(x, kernel, bias, implementation="onednn").square().sum()

    def plain_loss(x, kernel, bias):
        return (x @ kernel + bias).square().sum()

    found, expected = (
        torch.autograd.functional.hessian(function, arguments) for function in (loss, plain_loss)
    )
    for pair in zip(found, expected, strict=True):
        torch.testing.assert_close(*pair, rtol=1e-5, atol=1e-5)


@ON_TORCH
@pytest.mark.parametrize("processor", ["AuthenticAMD", "GenuineIntel"])
def test_the_processor_chooses(processor, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(BACKEND.pathlib.Path, "open", lambda *_, **__: io.StringIO(processor))
        patch.setattr(BACKEND.torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
        assert BACKEND.prefers_onednn() == (processor == "AuthenticAMD")


@ON_TORCH
def test_which_way_a_product_goes(monkeypatch):
    import torch

    ways, monkeypatched = [], monkeypatch.setattr
    bag, onednn = torch.embedding_bag, BACKEND.onednn_product
    monkeypatched(torch, "embedding_bag", lambda *x, **y: ways.append("bag") or bag(*x, **y))
    monkeypatched(BACKEND, "onednn_product", lambda *x: ways.append("onednn") or onednn(*x))

    def way(rows, kernel, implementation, bias=None, transpose=False, dtype="float32"):
        ways.clear()
        x = torch.ones(*rows, 512, dtype=getattr(torch, dtype))
        arguments = {"transpose_kernel": transpose, "implementation": implementation}
        y = matmul(x, kernel.to(x.dtype), bias, **arguments)
        assert y.shape == (*rows, 256)
        return ways[0] if ways else "linear"

    kernel, bias = torch.ones(512, 256), torch.ones(512)[::2]
    with torch.no_grad():
        for implementation in ("rows", "onednn"):
            others = "linear" if implementation == "rows" else "onednn"
            assert way((1, 1), kernel, implementation) == "bag"
            assert way((1, 1), kernel, implementation, dtype="bfloat16") == "bag"
            assert way((2,), kernel, implementation) == others
            assert way((2,), kernel, implementation, bias) == others
            assert way((2,), kernel, implementation, dtype="bfloat16") == "linear"
            assert way((1,), kernel.mT.contiguous(), implementation, transpose=True) == others
            assert way((1,), kernel.mT.contiguous().mT, implementation) == others
            assert way((2, 0), kernel, implementation) == "linear"
            with pytest.raises(RuntimeError, match="shapes"):
                matmul(torch.ones(2, 256), kernel, implementation=implementation)
        with torch.autocast("cpu", torch.bfloat16):
            assert way((2,), kernel, "onednn") == "linear"
    assert way((1,), kernel, "rows") == "linear"
    assert way((1,), kernel, "onednn") == "onednn"


@ON_TORCH
def test_a_frozen_kernel_keeps_no_input():
    import torch

    def kept(x, kernel):
        shapes = []

        def pack(tensor):
            shapes.extend([] if tensor is None else [tuple(tensor.shape)])
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            matmul(x, kernel, implementation="onednn").sum().backward()
        return shapes

    x, kernel = torch.ones(3, 4, requires_grad=True), torch.ones(4, 5, requires_grad=True)
    assert kept(x, kernel.detach()) == [(4, 5)]
    assert kept(x.detach(), kernel) == [(3, 4)]
    torch.testing.assert_close(x.grad, torch.full((3, 4), 5.0))
    torch.testing.assert_close(kernel.grad, torch.full((4, 5), 3.0))


@ON_TORCH
@pytest.mark.parametrize("implementation", ["linear", "onednn"])
def test_the_loss_takes_the_implementation_that_is_chosen(implementation, monkeypatch):
    import torch

    calls, onednn = [], BACKEND.onednn_product
    monkeypatch.setattr(BACKEND, "onednn_product", lambda *x: calls.append(1) or onednn(*x))
    arrays = [np.random.RandomState(i).normal(size=(6, 8)).astype("f") for i in range(2)]
    hidden, embeddings = (torch.tensor(x, requires_grad=True) for x in arrays)
    labels = torch.arange(6)
    with keras_rgemma.implementation(matmul=implementation):
        loss, _ = cross_entropy(hidden, embeddings, labels)
    loss.sum().backward()  # with the choice of that time
    assert bool(calls) == (implementation == "onednn")
    expected = torch.tensor(arrays[0], requires_grad=True)
    logits = expected @ torch.tensor(arrays[1]).T
    torch.nn.functional.cross_entropy(logits, labels, reduction="sum").backward()
    torch.testing.assert_close(hidden.grad, expected.grad)
