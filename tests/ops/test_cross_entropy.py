"""Every implementation of the cross-entropy is the reference in float64, whatever the chunks."""

import functools
import importlib

import keras
import numpy as np
import pytest

import tiny
from backend_independent import backend_independent
from gradients import gradients
from keras_rgemma.ops.cross_entropy import cross_entropy, reference

IMPLEMENTATIONS = tuple(
    importlib.import_module(
        f"keras_rgemma.ops.cross_entropy.{keras.config.backend()}"
    ).IMPLEMENTATIONS
)
N, D, V = 7, 3, 11
WEIGHTS = np.linspace(0, 2, N)

every_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
every_soft_cap = pytest.mark.parametrize("soft_cap", [None, 2.5])


def inputs(dtype="float64", scale=1.0):
    random = np.random.RandomState(0)
    hidden, embeddings = random.normal(size=(N, D)), scale * random.normal(size=(V, D))
    labels = random.randint(0, V, N)
    labels[0] = (hidden[0] @ embeddings.T).argmax()
    return hidden.astype(dtype), embeddings.astype(dtype), labels.astype("int32")


@every_implementation
@pytest.mark.parametrize("chunk_size", [1, 3, 4, N, 100, None])
@every_soft_cap
def test_it_is_the_reference(implementation, chunk_size, soft_cap):
    expected_losses, expected_hits = reference.cross_entropy(*inputs(), soft_cap)
    expected = reference.cross_entropy_gradient(*inputs(), soft_cap, WEIGHTS)
    hidden, embeddings, labels = inputs("float32")
    run = functools.partial(
        cross_entropy,
        labels=labels,
        soft_cap=soft_cap,
        chunk_size=chunk_size,
        implementation=implementation,
    )

    def loss(hidden, embeddings):
        losses, _ = run(hidden, embeddings)
        return keras.ops.sum(losses * keras.ops.convert_to_tensor(WEIGHTS, "float32"))

    losses, hits = run(hidden, embeddings)
    np.testing.assert_allclose(tiny.numpy(losses), expected_losses, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(tiny.numpy(hits), expected_hits)
    assert 0 < expected_hits.sum() < N
    for found, value in zip(gradients(loss, hidden, embeddings), expected, strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="graphs of TensorFlow")
@pytest.mark.parametrize("chunk_size", [3, N, None])
def test_a_graph_need_not_know_the_number_of_tokens(chunk_size):
    import tensorflow as tf

    hidden, embeddings, labels = inputs("float32")

    @tf.function(input_signature=[tf.TensorSpec((None, D)), tf.TensorSpec((None,), "int32")])
    def run(hidden, labels):
        table = tf.constant(embeddings)
        with tf.GradientTape() as tape:
            tape.watch([hidden, table])
            losses, _ = cross_entropy(hidden, table, labels, chunk_size=chunk_size)
            total = tf.reduce_sum(losses * WEIGHTS.astype("float32"))
        return tape.gradient(total, [hidden, table])

    expected = reference.cross_entropy_gradient(*inputs(), None, WEIGHTS)
    for found, value in zip(run(hidden, labels), expected, strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-6)


@backend_independent
@every_soft_cap
def test_the_reference_gradient_is_a_difference_quotient(soft_cap):
    """So that the test above does not hold two wrong formulas together."""
    *arrays, labels = inputs()

    def loss(*values):
        return np.sum(reference.cross_entropy(*values, labels, soft_cap)[0] * WEIGHTS)

    truth = reference.cross_entropy_gradient(*arrays, labels, soft_cap, WEIGHTS)
    for i, gradient in enumerate(truth):
        for index in np.ndindex(arrays[i].shape):
            nudged = [[x.copy() for x in arrays] for _ in range(2)]
            nudged[0][i][index] += 1e-5
            nudged[1][i][index] -= 1e-5
            quotient = (loss(*nudged[0]) - loss(*nudged[1])) / 2e-5
            # A central difference in float64 is right to 1e-10 / 1e-5 of the loss.
            assert abs(quotient - gradient[index]) < 1e-8


@every_implementation
def test_the_gradient_of_the_embeddings_can_be_left_out(implementation):
    hidden, embeddings, labels = inputs("float32")

    def loss(hidden, needs_embedding_gradient):
        losses, _ = cross_entropy(
            hidden,
            embeddings,
            labels,
            2.5,
            needs_embedding_gradient=needs_embedding_gradient,
            chunk_size=2,
            implementation=implementation,
        )
        return keras.ops.sum(losses)

    expected, found = (
        gradients(lambda x, needs=needs: loss(x, needs), hidden)[0] for needs in (True, False)
    )
    np.testing.assert_array_equal(found, expected)


@every_implementation
def test_half_precision_is_summed_in_float32(implementation):
    arrays = [keras.ops.cast(x, "bfloat16") for x in inputs(scale=3.0)[:2]]
    labels = inputs()[2]
    exact = [tiny.numpy(x).astype("float64") for x in arrays]
    expected, _ = reference.cross_entropy(*exact, labels)
    losses, _ = cross_entropy(*arrays, labels, chunk_size=3, implementation=implementation)
    assert keras.backend.standardize_dtype(losses.dtype) == "float32"
    # Logits of up to 16 may have been rounded to 8 bits; sums and logarithms were not.
    np.testing.assert_allclose(tiny.numpy(losses), expected, atol=2 * 16 * 2**-9)


@every_implementation
def test_large_logits_stay_finite(implementation):
    hidden, embeddings, labels = inputs("float32", scale=1e3)
    losses, _ = cross_entropy(
        hidden, embeddings, labels, chunk_size=2, implementation=implementation
    )
    assert np.isfinite(tiny.numpy(losses)).all()


def test_an_unknown_implementation_is_named():
    with pytest.raises(ValueError, match=r"'auto' or one of.*'chunked'.*Received: 'whole'"):
        cross_entropy(*inputs("float32"), implementation="whole")
