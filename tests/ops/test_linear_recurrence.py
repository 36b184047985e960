"""Every implementation of the linear recurrence is the plain loop of the reference."""

import functools
import importlib

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from compiled import compiled, to_numpy
from gradients import gradients
from keras_rgemma.ops.linear_recurrence import linear_recurrence, reference

BACKEND = keras.config.backend()
MODULE = importlib.import_module(f"keras_rgemma.ops.linear_recurrence.{BACKEND}")
# Those that run on any device, interpreted or not; tests/ops/test_triton_recurrence.py has the one
# that does not.
IMPLEMENTATIONS = tuple(
    name for name in MODULE.IMPLEMENTATIONS if (BACKEND, name) != ("torch", "triton")
)
BATCH, WIDTH = 2, 3
# float32 rounds each of at most 100 steps on values of magnitude 10 by 6e-8 of it.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}

every_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
every_length = pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 100])


@pytest.fixture(scope="module", autouse=True)
def interpreted_kernels():
    """Runs kernels in Pallas' interpreter where the device for them is not at hand."""
    with pytest.MonkeyPatch.context() as patch:
        if BACKEND == "jax":
            from keras_rgemma.ops.linear_recurrence.jax import pallas

            functions = {"pallas": pallas.linear_recurrence, "triton": pallas.triton}
            functions.pop(MODULE.default_implementation(), None)
            for name, function in functions.items():
                run = functools.partial(function, interpret=True)
                patch.setitem(MODULE.IMPLEMENTATIONS, name, run)
        yield


@functools.cache
def program(implementation):
    return compiled(functools.partial(linear_recurrence, implementation=implementation))


def sample(length, seed=0, low=-1.0, high=1.0):
    """x, a in [low, high] and the initial state, in float32."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(BATCH, length, WIDTH))
    a = random.uniform(low, high, size=(BATCH, length, WIDTH))
    initial_state = random.normal(size=(BATCH, WIDTH))
    return [array.astype("float32") for array in (x, a, initial_state)]


def expected(*arrays):
    return reference.linear_recurrence(*[np.asarray(x, "float64") for x in arrays])


def check(results, truths, **tolerance):
    for result, truth in zip(results, truths, strict=True):
        assert result.shape == truth.shape
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, truth, **(tolerance or TOLERANCE))


@every_implementation
@every_length
def test_it_is_the_plain_loop(implementation, length):
    x, a, initial_state = sample(length)
    check(program(implementation)(x, a, initial_state), expected(x, a, initial_state))


@every_implementation
def test_no_initial_state_means_zeros(implementation):
    x, a, _ = sample(33)
    check(program(implementation)(x, a), expected(x, a))


def test_it_runs_without_compilation():
    h, last = linear_recurrence(x=np.ones((1, 3, 1)), a=np.full((1, 3, 1), 0.5))
    # Exact: all are sums of powers of two.
    assert ops.convert_to_numpy(h).tolist() == [[[1.0], [1.5], [1.75]]]
    assert ops.convert_to_numpy(last).tolist() == [[1.75]]


def weighted_sum(h_weight, last_weight, implementation):
    """A scalar of both outputs, whose gradients by them are the weights."""
    h_weight, last_weight = map(ops.convert_to_tensor, (h_weight, last_weight))

    def loss(x, a, initial_state):
        h, last = linear_recurrence(x, a, initial_state, implementation=implementation)
        return ops.sum(h * h_weight) + ops.sum(last * last_weight)

    return loss


def check_gradients(arrays, implementation):
    random = np.random.default_rng(1)
    h_weight = random.normal(size=arrays[0].shape).astype("float32")
    last_weight = random.normal(size=arrays[2].shape).astype("float32")
    result = gradients(weighted_sum(h_weight, last_weight, implementation), *arrays)
    truth = reference.linear_recurrence_gradient(
        *[x.astype("float64") for x in (*arrays, h_weight, last_weight)]
    )
    check(result, truth)


@every_implementation
@every_length
def test_gradients_are_those_of_the_plain_loop(implementation, length):
    check_gradients(sample(length), implementation)


def test_the_reference_gradient_is_a_difference_quotient():
    """So that the tests above do not hold two wrong formulas together."""
    arrays = [x.astype("float64") for x in sample(5)]
    random = np.random.default_rng(1)
    weights = [random.normal(size=arrays[i].shape) for i in (0, 2)]

    def loss(*values):
        outputs = reference.linear_recurrence(*values)
        return sum(np.sum(out * w) for out, w in zip(outputs, weights, strict=True))

    truth = reference.linear_recurrence_gradient(*arrays, *weights)
    for i, gradient in enumerate(truth):
        for index in np.ndindex(arrays[i].shape):
            nudged = [[x.copy() for x in arrays] for _ in range(2)]
            nudged[0][i][index] += 1e-5
            nudged[1][i][index] -= 1e-5
            quotient = (loss(*nudged[0]) - loss(*nudged[1])) / 2e-5
            # A central difference in float64 is right to 1e-10 / 1e-5 of the loss.
            assert abs(quotient - gradient[index]) < 1e-8


@every_implementation
def test_a_of_one_and_x_of_zero_keep_the_state_to_the_bit(implementation):
    x, a, initial_state = sample(33)
    h, last = program(implementation)(np.zeros_like(x), np.ones_like(a), initial_state)
    np.testing.assert_array_equal(h, np.broadcast_to(initial_state[:, None], h.shape))
    np.testing.assert_array_equal(last, initial_state)


@every_implementation
def test_a_of_zero_forgets_all_before_it(implementation):
    x, a, initial_state = sample(33)
    a[:, 20] = 0.0
    h, _ = program(implementation)(x, a, initial_state)
    other_x, other_state = x.copy(), initial_state + 100.0
    other_x[:, :20] += 100.0
    other_h, _ = program(implementation)(other_x, a, other_state)
    assert np.abs(other_h[:, :20] - h[:, :20]).min() > 0.1
    np.testing.assert_array_equal(other_h[:, 20:], h[:, 20:])
    np.testing.assert_array_equal(h[:, 20], x[:, 20])


@every_implementation
@settings(max_examples=15)
@given(
    cut=st.sampled_from([1, 31, 32, 33]),
    decays=st.lists(st.sampled_from([0.0, 0.5, -0.7, 0.999, 1.0]), min_size=65, max_size=65),
    seed=st.integers(0, 99),
)
def test_two_pieces_are_one_pass(implementation, cut, decays, seed):
    x, a, state = sample(65, seed)
    a[:] = np.array(decays, "float32")[None, :, None]
    run = program(implementation)
    first, state_between = run(x[:, :cut], a[:, :cut], state)
    second, last = run(x[:, cut:], a[:, cut:], state_between)
    check([np.concatenate([first, second], axis=1), last], expected(x, a, state))


@every_implementation
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_accumulates_in_float32(implementation, dtype):
    tensors = [ops.cast(array, dtype) for array in sample(100, low=0.9, high=1.0)]
    rounded = to_numpy(tensors)
    # The tolerance of float32 (half precision would miss it a hundredfold).
    check(program(implementation)(*tensors), expected(*rounded))


@every_implementation
def test_three_thousand_steps_stay_accurate(implementation):
    x, a, initial_state = sample(3000, low=0.999, high=1.0)
    x = np.abs(x)
    h, last = expected(x, a, initial_state)
    assert h.max() > 500.0
    # 3000 roundings of 6e-8 that add up at random are 3e-6 of the largest value.
    check(program(implementation)(x, a, initial_state), (h, last), rtol=1e-5, atol=1e-2)


def test_an_unknown_implementation_is_named():
    with pytest.raises(ValueError, match=r"'auto' or one of.*Received: 'quadratic'"):
        linear_recurrence(*sample(2), implementation="quadratic")


def test_an_unsupported_backend_is_named(monkeypatch):
    monkeypatch.setattr(keras.config, "backend", lambda: "openvino")
    with pytest.raises(ValueError, match="Received: 'openvino'"):
        linear_recurrence(np.ones((1, 2, 1)), np.ones((1, 2, 1)))


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only TensorFlow has unknown lengths")
def test_batch_and_length_may_be_unknown():
    import tensorflow as tf

    sequence, state = tf.TensorSpec((None, None, WIDTH)), tf.TensorSpec((None, WIDTH))

    @tf.function(input_signature=[sequence, sequence, state], jit_compile=False)
    def run(x, a, initial_state):
        with tf.GradientTape() as tape:
            tape.watch([x, a, initial_state])
            h, last = linear_recurrence(x, a, initial_state)
            loss = tf.reduce_sum(h) + 2.0 * tf.reduce_sum(last)
        return (h, last), tape.gradient(loss, [x, a, initial_state])

    for length in (1, 31, 32, 33, 100):
        arrays = [array[:1] if length == 31 else array for array in sample(length)]
        outputs, gradient = run(*arrays)
        check([x.numpy() for x in outputs], expected(*arrays))
        truth = reference.linear_recurrence_gradient(
            *[x.astype("float64") for x in arrays],
            np.ones(arrays[0].shape),
            np.full(arrays[2].shape, 2.0),
        )
        check([x.numpy() for x in gradient], truth)


@pytest.mark.parametrize("implementation", [x for x in IMPLEMENTATIONS if x != "triton"])
def test_no_operation_is_issued_once_a_token(implementation):
    arrays = [np.ones((1, 2048, WIDTH), "float32")] * 2
    run = functools.partial(linear_recurrence, implementation=implementation)
    assert number_of_operations(run, *arrays) < 400


def number_of_operations(function, *arrays):
    """How many operations a call issues (on JAX and TensorFlow: its program has)."""
    if BACKEND == "jax":
        import jax

        return number_of_equations(jax.make_jaxpr(function)(*arrays).jaxpr)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        graph = tf.function(function).get_concrete_function(*map(tf.constant, arrays)).graph
        return len(graph.get_operations())
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counter(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            # A view launches nothing.
            self.count += not operation.is_view
            return operation(*args, **(kwargs or {}))

    with Counter() as counter:
        function(*map(torch.as_tensor, arrays))
    return counter.count


def number_of_equations(jaxpr):
    inner = [x for equation in jaxpr.eqns for x in equation.params.values()]
    inner = [getattr(x, "jaxpr", x) for x in inner]
    return len(jaxpr.eqns) + sum(number_of_equations(x) for x in inner if hasattr(x, "eqns"))
