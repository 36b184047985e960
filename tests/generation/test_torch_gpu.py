"""The kernels of a token on a GPU compute what PyTorch's operations compute.

They run where a CUDA device is, and elsewhere in Triton's interpreter, which has to be chosen
before Triton is imported: `test_the_kernels_in_the_interpreter` runs this file so, in another
process.
"""

import importlib.util
import os

import keras
import numpy as np
import pytest

import own_triton
import tiny
from laws import test_bound_step

if keras.config.backend() != "torch":
    pytest.skip("Triton is for PyTorch", allow_module_level=True)

import torch

from keras_rgemma.generation.torch import binding, compile_program, gpu
from keras_rgemma.keras_internals.torch import default_device
from keras_rgemma.layers.rg_lru import rg_lru
from keras_rgemma.ops.places import next_places

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HAS_TRITON = importlib.util.find_spec("triton") is not None
RUNS = HAS_TRITON and (default_device() == "cuda" or IS_INTERPRETED)
needs_kernels = pytest.mark.skipif(not RUNS, reason="no CUDA device: runs in the interpreter")


def test_the_kernels_in_the_interpreter():
    if IS_INTERPRETED:
        pytest.skip("this is the interpreter")
    own_triton.run_in_the_interpreter(__file__, "not interpreter")


@pytest.fixture
def kernels(monkeypatch):
    """Lists the kernels that were launched, on any device."""
    names = []
    launch = gpu._launch

    def listed(name, *args, **kwargs):
        names.append(name)
        launch(name, *args, **kwargs)

    monkeypatch.setattr(gpu, "_launch", listed)
    monkeypatch.setattr(gpu, "can_fuse", lambda tensor: True)
    monkeypatch.setattr(gpu, "BLOCK", 8)  # so that widths have several blocks
    return names


ALL = {"rms_norm_kernel", "rg_lru_kernel", "conv_kernel", "rope_kernel", "gated_gelu_kernel"}


@needs_kernels
@pytest.mark.parametrize("has_mask", [False, True])
@pytest.mark.parametrize("name", ["LoRA", "int8", "bfloat16", "mixed_bfloat16"])
def test_a_step_of_kernels_is_that_of_operations(kernels, name, has_mask):
    lm = test_bound_step.CASES[name]()
    ids = keras.ops.convert_to_tensor([[3], [4], [5]], dtype="int32")
    mask = keras.ops.convert_to_tensor([[True], [False], [True]]) if has_mask else None
    results = []
    for bind in (binding.bind, binding.bind_fused):
        with torch.no_grad():
            step = lm.bound(bind).step
            prompt = keras.ops.convert_to_tensor([[7, 8, 9]] * 3, dtype="int32")
            _, state = step(prompt, None, lm.initial_state(3))
            results.append([step(ids, mask, state, True), state])
    assert set(kernels) >= ALL
    tolerance = 0.06 if "bfloat16" in name else 1e-5
    for one, other in zip(*map(keras.tree.flatten, results), strict=True):
        assert one.dtype == other.dtype
        one, other = tiny.numpy(one), tiny.numpy(other)
        if one.dtype == np.int32:
            np.testing.assert_array_equal(one, other)
        scale = max(np.abs(one).max(), 1.0)
        np.testing.assert_allclose(other, one, rtol=0, atol=tolerance * scale)


def array(*shape, dtype="float32", low=-3.0, high=3.0):
    x = np.random.RandomState(0).uniform(low, high, shape).astype("float32")
    return keras.ops.convert_to_tensor(x).to(getattr(torch, dtype))


@needs_kernels
@pytest.mark.parametrize("log_a", [-1e-6, -1e-3, -0.05, -0.3, -0.4, -1.0, -20.0, -200.0])
def test_a_decay_near_one_loses_no_digits(kernels, log_a):
    """1 - a^2 by its float64 value: a difference in float32 would lose half of the digits."""
    width = 12
    x = array(2, 1, width)
    # A gate of sigmoid 1 leaves the rate -8 softplus(a_param).
    a_param = keras.ops.full((width,), float(np.log(np.expm1(-log_a / 8.0))))
    gates = {"input_gate": 40.0, "a_gate": 40.0}
    parts = {k: lambda _, v=v: torch.full_like(x, v) for k, v in gates.items()}
    places = next_places(keras.ops.convert_to_tensor([4, 5], dtype="int32"), None, True)
    step = gpu.fused(rg_lru, None)
    parts |= {"a_param": a_param, "to_blocks": lambda y: y}
    _, new = step(x, places, torch.zeros_like(x[:, 0]), True, **parts)
    rate = -8.0 * np.log1p(np.exp(tiny.numpy(a_param).astype("float64")))
    expected = np.sqrt(-np.expm1(2.0 * rate)) * tiny.numpy(x[:, 0]).astype("float64")
    np.testing.assert_allclose(tiny.numpy(new), expected, rtol=2e-6)


@needs_kernels
def test_compiled_programs_take_them_on_a_gpu(kernels, monkeypatch):
    monkeypatch.setattr(gpu, "runs_on", lambda device: True)
    lm = test_bound_step.CASES["LoRA"]()
    run = compile_program(lambda model, *x: model.decoding.step(*x), lm, None, False)
    ids = keras.ops.convert_to_tensor([[3]], dtype="int32")
    run(ids, None, lm.initial_state(1), True)
    assert set(kernels) >= ALL
