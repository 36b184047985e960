"""The Triton kernels of the linear recurrence are its plain loop, and are never replaced silently.

They run where a CUDA device is, and elsewhere in Triton's interpreter, which has to be chosen
before Triton is imported: `test_the_kernels_in_the_interpreter` runs this file so, in another
process.
"""

import importlib
import os
import sys

import keras
import numpy as np
import pytest
from keras import ops

import keras_rgemma
import own_triton
from compiled import to_numpy
from keras_rgemma.ops.linear_recurrence import linear_recurrence, reference

if keras.config.backend() != "torch":
    pytest.skip("Triton is for PyTorch", allow_module_level=True)

import torch

from keras_rgemma.keras_internals.torch import default_device
from keras_rgemma.ops.linear_recurrence import torch as implementations
from keras_rgemma.ops.linear_recurrence.torch import triton_operators

IS_IMPORTED = triton_operators.KERNELS in sys.modules  # by those above, before any test
HAS_TRITON = importlib.util.find_spec("triton") is not None
IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
RUNS = HAS_TRITON and (default_device() == "cuda" or IS_INTERPRETED)
needs_kernels = pytest.mark.skipif(not RUNS, reason="no CUDA device: runs in the interpreter")
# float32 rounds each of at most 100 steps on values of magnitude 10 by 6e-8 of it.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
# Gradients are rounded to their dtype, wrong by half of the last bit; the interpreter cuts bits off
# where they go to bfloat16.
LAST_BIT = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0 ** (-7 if IS_INTERPRETED else -8)}

run = triton_operators.linear_recurrence


def test_the_kernels_in_the_interpreter():
    if IS_INTERPRETED:
        pytest.skip("this is the interpreter")
    own_triton.run_in_the_interpreter(__file__, "not interpreter and not forced")


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of few steps, so that short arrays have many: the interpreter takes its time."""
    monkeypatch.setattr(triton_operators, "SPANS", 4)
    monkeypatch.setattr(triton_operators, "OPTIONS", {"num_warps": 4})
    monkeypatch.setattr(triton_operators, "STEPS", 3)
    monkeypatch.setattr(triton_operators, "GRADIENT_STEPS", 2)


def sample(batch, length, width, dtype="float32", resets=0.1):
    """Leaves x, a (zero at the share `resets`) and the initial state, and weights of h and last."""
    random = np.random.default_rng(length)
    shape = (batch, length, width)
    x, weight = random.normal(size=(2, *shape))
    a = random.uniform(-1.0, 1.0, size=shape)
    a *= random.uniform(size=(batch, length, 1)) >= resets
    initial_state, last_weight = random.normal(size=(2, batch, width))
    half = (ops.convert_to_tensor(y.astype("float32")).to(getattr(torch, dtype)) for y in (x, a))
    leaves = [*half, ops.convert_to_tensor(initial_state.astype("float32"))]
    leaves = [y.detach().requires_grad_() for y in leaves]
    return leaves, [ops.convert_to_tensor(y.astype("float32")) for y in (weight, last_weight)]


def gradients(outputs, weights, leaves):
    loss = sum((y * weight).sum() for y, weight in zip(outputs, weights, strict=True))
    return torch.autograd.grad(loss, leaves)


def doubles(tensors):
    return [y.astype("float64") for y in to_numpy([y.detach() for y in tensors])]


def check(results, truths, **tolerance):
    for result, truth in zip(to_numpy([y.detach() for y in results]), truths, strict=True):
        np.testing.assert_allclose(result, truth, **(tolerance or TOLERANCE))


@needs_kernels
@pytest.mark.parametrize(
    "dtype, batch, length, width",
    [
        ("float32", 2, 1, 3),
        ("float32", 1, 2, 33),
        ("float32", 3, 11, 32),
        ("float32", 1, 12, 1),
        ("float32", 1, 40, 5),
        ("bfloat16", 2, 14, 3),
        ("float16", 2, 14, 3),
    ],
)
def test_values_and_gradients_are_those_of_the_plain_loop(
    small_chunks, dtype, batch, length, width
):
    leaves, weights = sample(batch, length, width, dtype)
    outputs = run(*leaves)
    assert {y.dtype for y in outputs} == {torch.float32}
    check(outputs, reference.linear_recurrence(*doubles(leaves)))
    results = gradients(outputs, weights, leaves)
    assert [y.dtype for y in results] == [y.dtype for y in leaves]
    truths = reference.linear_recurrence_gradient(*doubles(leaves), *doubles(weights))
    check(results, truths, rtol=LAST_BIT[dtype] + TOLERANCE["rtol"], atol=TOLERANCE["atol"])


@needs_kernels
def test_chunks_of_the_sizes_that_run_agree_with_the_other_implementation():
    leaves, weights = sample(1, 300, 33)
    outputs = run(*leaves)
    others = implementations.IMPLEMENTATIONS["chunked"](*leaves)
    check(outputs, doubles(others))
    check(gradients(outputs, weights, leaves), doubles(gradients(others, weights, leaves)))


@needs_kernels
def test_inputs_of_two_dtypes(small_chunks):
    (x, a, initial_state), weights = sample(2, 14, 3)
    leaves = [x.detach().bfloat16().requires_grad_(), a, initial_state]
    outputs = run(*leaves)
    check(outputs, reference.linear_recurrence(*doubles(leaves)))
    x_gradient, a_gradient, _ = gradients(outputs, weights, leaves)
    assert (x_gradient.dtype, a_gradient.dtype) == (torch.bfloat16, torch.float32)
    truths = reference.linear_recurrence_gradient(*doubles(leaves), *doubles(weights))
    check([a_gradient], truths[1:2])


@needs_kernels
def test_arrays_may_have_gaps(small_chunks):
    leaves, weights = sample(2, 14, 3)
    with_gaps = [torch.stack([y, y + 1.0], -1)[..., 0] for y in leaves]
    assert not any(y.is_contiguous() for y in with_gaps)
    outputs, expected = run(*with_gaps), run(*leaves)
    check(outputs, to_numpy([y.detach() for y in expected]), rtol=0, atol=0)
    # The gradient of a sum has no memory of its own at all.
    result = torch.autograd.grad(outputs[0].sum(), leaves)
    truths = [torch.ones_like(weights[0]), torch.zeros_like(weights[1])]
    check(result, reference.linear_recurrence_gradient(*doubles(leaves), *doubles(truths)))


@needs_kernels
def test_a_state_survives_and_a_document_forgets_to_the_bit(small_chunks):
    (x, a, initial_state), _ = sample(1, 30, 3, resets=0.0)
    h, last = run(torch.zeros_like(x), torch.ones_like(a), initial_state)
    assert torch.equal(h, initial_state[:, None].expand_as(h)) and torch.equal(last, initial_state)
    a = a.detach().clone()
    a[:, 17] = 0.0
    h, _ = run(x, a, initial_state)
    other_x = x.detach().clone()
    other_x[:, :17] += 100.0
    other_h, _ = run(other_x, a, initial_state + 100.0)
    assert (other_h[:, :17] - h[:, :17]).abs().min() > 0.1
    assert torch.equal(other_h[:, 17:], h[:, 17:]) and torch.equal(h[:, 17], x[:, 17])


@needs_kernels
def test_the_operators_keep_what_they_promise_to_pytorch(small_chunks):
    leaves, _ = sample(2, 14, 3)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(triton_operators._forward, leaves, test_utils=checks)
    detached = [y.detach() for y in leaves]
    h, last = run(*detached)
    arguments = (h, last, *detached[1:], h, torch.bfloat16)
    torch.library.opcheck(triton_operators._backward, arguments, test_utils=checks)


@needs_kernels
@pytest.mark.parametrize("length", [1, 14])
def test_a_compiled_function_is_one_graph(small_chunks, length):
    leaves, weights = sample(2, length, 3)

    def function(*arrays):
        return linear_recurrence(*arrays, implementation="triton")

    expected = function(*leaves)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    outputs = compiled(*leaves)
    check(outputs, to_numpy([y.detach() for y in expected]), rtol=0, atol=0)
    truths = to_numpy(gradients(expected, weights, leaves))
    check(gradients(outputs, weights, leaves), truths, rtol=0, atol=0)


@needs_kernels
def test_inference_mode(small_chunks):
    leaves, _ = sample(2, 14, 3)
    with torch.inference_mode():
        outputs = run(*leaves)
    assert not any(y.requires_grad for y in outputs)
    check(outputs, reference.linear_recurrence(*doubles(leaves)))


@needs_kernels
def test_shapes_that_would_be_read_beyond_their_end_are_refused():
    (x, a, initial_state), _ = sample(2, 14, 3)
    with pytest.raises(
        ValueError, match=r"Received the shapes \(2, 14, 3\), \(2, 13, 3\), \(2, 3\)"
    ):
        run(x, a[:, 1:], initial_state)
    with pytest.raises(ValueError, match=r"Received the shapes .* \(1, 3\)\."):
        run(x, a, initial_state[:1])


def test_only_shapes_are_computed_where_there_is_no_memory():
    leaves = [y.detach().to("meta") for y in sample(2, 14, 3)[0]]
    h, last = run(*leaves)
    assert h.is_meta and (h.shape, last.shape) == ((2, 14, 3), (2, 3))


@pytest.mark.skipif(RUNS, reason="here Triton runs")
@pytest.mark.parametrize("length", [1, 14])
def test_a_forced_choice_says_what_to_do_on_a_cpu(length):
    arrays = sample(2, length, 3)[0]
    remedy = "compute on a CUDA device" if HAS_TRITON else "`triton` is not installed: install it"
    with (
        keras_rgemma.implementation(linear_recurrence="triton"),
        pytest.raises(ValueError, match=f"cannot run here.*{remedy}.*'chunked'"),
    ):
        linear_recurrence(*arrays)
    check(linear_recurrence(*arrays), reference.linear_recurrence(*doubles(arrays)))


@pytest.mark.parametrize(
    "device, found, cuda, capability, default",
    [
        ("cuda", True, "13.0", (9, 0), "triton"),
        ("cuda", True, "13.0", (7, 5), "triton"),
        ("cuda", True, "13.0", (6, 0), "chunked"),
        ("cuda", True, None, (9, 0), "chunked"),
        ("cuda", False, "13.0", (9, 0), "chunked"),
        ("cpu", True, "13.0", (9, 0), "chunked"),
        ("meta", True, "13.0", (9, 0), "chunked"),
    ],
)
def test_the_default(monkeypatch, device, found, cuda, capability, default):
    monkeypatch.setattr(implementations, "default_device", lambda: device)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if found else None)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    triton_operators.find_problem.cache_clear()
    try:
        assert implementations.default_implementation() == default
    finally:
        triton_operators.find_problem.cache_clear()


@pytest.mark.skipif(default_device() == "cuda", reason="other tests run the kernels, too")
def test_the_package_does_not_import_the_kernels():
    assert not IS_IMPORTED
