"""The kernels of the recurrence, in Pallas' interpreter, and lowered for TPUs and GPUs."""

import functools
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_rgemma.ops.linear_recurrence import linear_recurrence as operation
from keras_rgemma.ops.linear_recurrence import reference

if keras.config.backend() != "jax":
    pytest.skip("Pallas is JAX's", allow_module_level=True)

import jax
import jax.numpy as jnp

from compiled import QUICK
from keras_rgemma.ops.linear_recurrence import jax as implementations
from keras_rgemma.ops.linear_recurrence.jax.pallas import linear_recurrence, triton

TESTS = pathlib.Path(__file__).parent.parent
# (B, T, L): blocks that do not divide T or L, and blocks that do.
SIZES = [(1, 5, 100), (1, 512, 1280), (2, 270, 1100)]
every_size = pytest.mark.parametrize("size", SIZES, ids=str)
FUNCTIONS = {"pallas": linear_recurrence, "triton": triton}
every_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
every_dtype = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])


def sample(size, dtype):
    """x, a, the initial state, and weights of h and the last state, as JAX arrays.

    As a model makes them: decays near 1, documents that begin here and there (a = 0), and pads at
    the end (a = 1, x = 0).
    """
    batch, length, width = size
    random = np.random.default_rng(0)
    x = random.normal(size=size)
    a = random.uniform(0.9, 1.0, size=size)
    a[:, random.integers(0, length, size=3)] = 0.0
    x[-1, length - 2 :], a[-1, length - 2 :] = 0.0, 1.0
    state, last_weight = random.normal(size=(2, batch, width))
    h_weight = random.normal(size=size)
    half = [jnp.asarray(v, dtype) for v in (x, a)]
    return [*half, *(jnp.asarray(v, "float32") for v in (state, h_weight, last_weight))]


def in_float64(arrays):
    return [np.asarray(x).astype("float64") for x in arrays]


def weighted_sum(x, a, state, h_weight, last_weight, function=linear_recurrence):
    """A scalar whose gradients by h and the last state are the weights; and both of those."""
    h, last = function(x, a, state, interpret=True)
    return jnp.sum(h * h_weight) + jnp.sum(last * last_weight), (h, last)


def run(function, *arrays):
    return jax.jit(function, compiler_options=QUICK)(*arrays)


def gradients_of(function, change=lambda x: x):
    value = change(functools.partial(weighted_sum, function=function))
    return jax.value_and_grad(value, argnums=(0, 1, 2), has_aux=True)


with_gradients = gradients_of(linear_recurrence)


@every_function
@pytest.mark.parametrize("size, dtype", [*((x, "float32") for x in SIZES), (SIZES[-1], "bfloat16")])
def test_results_and_gradients_are_those_of_the_plain_loop(function, size, dtype):
    arrays = sample(size, dtype)
    (_, outputs), gradients = run(gradients_of(function), *arrays)
    assert [x.dtype.name for x in outputs] == ["float32"] * 2
    assert [x.dtype.name for x in gradients] == [dtype, dtype, "float32"]
    arrays = in_float64(arrays)
    # Sums of some ten values of magnitude 1, each rounded by 6e-8: 1e-5 is a hundred times that.
    for result, truth in zip(outputs, reference.linear_recurrence(*arrays[:3]), strict=True):
        np.testing.assert_allclose(result, truth, rtol=1e-5, atol=1e-5)
    truths = reference.linear_recurrence_gradient(*arrays)
    for result, truth in zip(gradients, truths, strict=True):
        # bfloat16 rounds a gradient once, when it is written: by at most 2^-8 of it.
        rounding = 2.0**-8 if result.dtype == "bfloat16" else 0.0
        tolerance = {"rtol": rounding + 1e-5, "atol": 3e-5}
        np.testing.assert_allclose(result.astype("float32"), truth, **tolerance)


@every_function
def test_a_step_that_is_not_finite_spoils_none_before_it(function):
    x, a, state, *_ = sample((1, 300, 8), "float32")
    h, _ = function(x, a, state, interpret=True)
    x = x.at[:, 261].set(np.inf)
    spoilt, _ = function(x, a, state, interpret=True)
    np.testing.assert_array_equal(spoilt[:, :261], h[:, :261])
    assert np.isinf(spoilt[:, 261]).all()


@functools.cache
def small(function):
    """The sample of (2, 270, 8), two blocks a row, and its values and gradients as a flat list."""
    arrays = sample((2, 270, 8), "float32")
    return arrays, jax.tree.leaves(run(gradients_of(function), *arrays))


@every_function
def test_recomputed_gradients_are_the_same(function):
    arrays, results = small(function)
    recomputed = run(gradients_of(function, jax.checkpoint), *arrays)
    for one, other in zip(jax.tree.leaves(recomputed), results, strict=True):
        np.testing.assert_array_equal(one, other)


@every_function
def test_mapped_rows_are_rows(function):
    arrays, (_, *results) = small(function)
    mapped = run(jax.vmap(gradients_of(function)), *(x[:, None] for x in arrays))
    for one, other in zip(jax.tree.leaves(mapped)[1:], results, strict=True):
        np.testing.assert_array_equal(one[:, 0], other)


def on_a_device(*arrays, function=linear_recurrence):
    h, last = function(*arrays[:3])
    return jnp.sum(h * arrays[3]) + jnp.sum(last * arrays[4])


@every_size
@every_dtype
def test_a_tpu_gets_both_kernels(size, dtype):
    """JAX refuses blocks and operations that a TPU does not have, before there is one."""
    gradients = jax.jit(jax.grad(on_a_device, argnums=(0, 1, 2)))
    program = jax.export.export(gradients, platforms=["tpu"])(*sample(size, dtype))
    assert program.mlir_module().count("tpu_custom_call") >= 2


def test_a_tpu_gets_them_under_vmap_too():
    arrays = [x[None] for x in sample(SIZES[0], "float32")]
    gradients = jax.jit(jax.vmap(jax.grad(on_a_device, argnums=(0, 1, 2))))
    program = jax.export.export(gradients, platforms=["tpu"])(*arrays)
    assert program.mlir_module().count("tpu_custom_call") >= 2


@every_size
@every_dtype
def test_a_gpu_gets_both_kernels(size, dtype):
    gradients = jax.grad(functools.partial(on_a_device, function=triton), argnums=(0, 1, 2))
    program = jax.jit(gradients).trace(*sample(size, dtype))
    try:
        text = program.lower(lowering_platforms=("cuda",)).as_text()
    except RuntimeError as error:  # JAX 0.11 asks the GPU what it can do
        pytest.skip(str(error))
    assert text.count("triton") >= 2


@pytest.mark.parametrize(
    "name, devices", [("pallas", "TPUs"), ("triton", "GPUs of NVIDIA since Ampere")]
)
def test_another_device_is_refused_when_the_program_is_made(name, devices):
    if {"pallas": "tpu", "triton": "gpu"}[name] == jax.default_backend():
        pytest.skip("the device is here")
    arrays = sample((1, 4, 8), "float32")[:3]
    for function in (lambda *x: operation(*x, implementation=name), FUNCTIONS[name]):
        for call in (function, jax.jit(function)):
            with pytest.raises(ValueError, match=rf"on {devices}.*Received.*Choose 'auto'"):
                call(*arrays)


@pytest.mark.parametrize(
    "capability, name", [((7, 5), "loop"), ((8, 0), "by_device"), (None, "loop")]
)
def test_triton_is_the_default_where_xla_has_it(monkeypatch, capability, name):
    monkeypatch.setattr(implementations, "cuda_capability", lambda: capability)
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")  # which has a default beside it
    assert implementations.default_implementation() == name


def test_a_program_for_another_device_does_without_the_kernel():
    """On a machine with a GPU a program may be for its CPU."""
    arrays = sample((1, 4, 8), "float32")
    run = functools.partial(operation, implementation="by_device")

    def gradients(x, a, state, h_weight, last_weight):
        outputs, back = jax.vjp(run, x, a, state)
        return outputs, back((h_weight, last_weight))

    results = jax.jit(gradients)(*arrays)
    truths = reference.linear_recurrence_gradient(*in_float64(arrays))
    for result, truth in zip(results[1], truths, strict=True):
        np.testing.assert_allclose(result, truth, rtol=1e-5, atol=1e-5)
    program = jax.jit(gradients).trace(*arrays)
    assert "triton" not in program.lower(lowering_platforms=("cpu",)).as_text()
    try:
        text = program.lower(lowering_platforms=("cuda",)).as_text()
    except RuntimeError as error:  # JAX 0.11 asks the GPU what it can do
        pytest.skip(str(error))
    assert text.count("triton") >= 2


@every_function
@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 3, 0)])
def test_nothing_comes_of_no_rows_and_no_channels(function, shape):
    x = jnp.zeros(shape)
    h, last = function(x, x, x[:, 0], interpret=True)
    assert h.shape == shape and last.shape == (shape[0], shape[2])


# A process of its own, because JAX counts its devices once.
SCRIPT = """
import jax
import keras
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from keras_rgemma.ops.linear_recurrence.jax.pallas.devices import on_shards
from test_linear_recurrence_pallas import QUICK, run, sample, with_gradients

arrays = sample((2, 40, 256), "float32")
plain = run(with_gradients, *arrays)
mesh = keras.distribution.DeviceMesh((2, 2), ("rows", "model"), keras.distribution.list_devices())
layout = keras.distribution.LayoutMap(mesh)
keras.distribution.set_distribution(
    keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="rows")
)
specs = {2: PartitionSpec("rows", "model"), 3: PartitionSpec("rows", None, "model")}
put = lambda x: jax.device_put(x, NamedSharding(mesh.backend_mesh, specs[x.ndim]))
program = jax.jit(lambda *x: with_gradients(*x)).lower(*map(put, arrays)).compile(QUICK)
assert "all-reduce(" in program.as_text()  # of the loss
assert not any(f"{name}(" in program.as_text() for name in ("all-gather", "all-to-all"))
results = program(*map(put, arrays))
for one, other in zip(*map(jax.tree.leaves, (results, plain)), strict=True):
    # The loss is summed in another order.
    np.testing.assert_allclose(one, other, rtol=1e-5 if one.ndim == 0 else 0.0)
# Sizes that the devices do not divide.
for size in [(1, 2, 4), (2, 2, 5), (1, 2, 5)]:
    x, _, state, *_ = sample(size, "float32")
    add = lambda x, state: (x + state[:, None],)
    (total,) = on_shards(add, mesh.backend_mesh, "rows", x, state)
    np.testing.assert_array_equal(total, x + state[:, None])
print("equal")
"""


@pytest.mark.slow
def test_each_device_of_a_distribution_runs_its_share():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, (TESTS, TESTS / "ops", TESTS.parent))),
            "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout.endswith("equal\n"), done.stderr[-3000:]
