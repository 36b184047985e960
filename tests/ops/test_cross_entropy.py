"""The chunked cross-entropy: its definition in float64, whatever the chunks."""

import keras
import numpy as np
import pytest

import tiny
from gradients import gradients
from keras_rgemma.ops.cross_entropy import cross_entropy

N, D, V = 7, 3, 11


def inputs(dtype="float64", scale=1.0):
    random = np.random.RandomState(0)
    hidden, embeddings = random.normal(size=(N, D)), scale * random.normal(size=(V, D))
    labels = random.randint(0, V, N)
    labels[0] = (hidden[0] @ embeddings.T).argmax()
    return hidden.astype(dtype), embeddings.astype(dtype), labels.astype("int32")


def definition(hidden, embeddings, labels, soft_cap):
    """Losses, hits, and the gradients of the weighted sum of the losses, in float64."""
    raw = hidden @ embeddings.T
    logits = raw if soft_cap is None else soft_cap * np.tanh(raw / soft_cap)
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    losses = -np.log(shares[np.arange(N), labels])
    d = (shares - np.eye(V)[labels]) * WEIGHTS[:, None]
    if soft_cap is not None:
        d *= 1 - np.tanh(raw / soft_cap) ** 2
    return losses, logits.argmax(axis=-1) == labels, d @ embeddings, d.T @ hidden


WEIGHTS = np.linspace(0, 2, N)


@pytest.mark.parametrize("chunk_size", [1, 3, 4, N, 100, None])
@pytest.mark.parametrize("soft_cap", [None, 2.5])
def test_it_is_the_definition(chunk_size, soft_cap):
    arrays = inputs()
    expected = definition(*arrays, soft_cap)
    hidden, embeddings, labels = inputs("float32")

    def loss(hidden, embeddings):
        losses, _ = cross_entropy(hidden, embeddings, labels, soft_cap, chunk_size=chunk_size)
        return keras.ops.sum(losses * keras.ops.convert_to_tensor(WEIGHTS, "float32"))

    losses, hits = cross_entropy(hidden, embeddings, labels, soft_cap, chunk_size=chunk_size)
    np.testing.assert_allclose(tiny.numpy(losses), expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(tiny.numpy(hits), expected[1])
    assert 0 < expected[1].sum() < N
    for found, value in zip(gradients(loss, hidden, embeddings), expected[2:], strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-6)


def test_embeddings_that_do_not_learn():
    hidden, embeddings, labels = inputs("float32")

    def loss(hidden, learns):
        losses, _ = cross_entropy(hidden, embeddings, labels, 2.5, learns=learns, chunk_size=2)
        return keras.ops.sum(losses)

    expected, found = (
        gradients(lambda x, learns=learns: loss(x, learns), hidden)[0] for learns in (True, False)
    )
    np.testing.assert_array_equal(found, expected)


def test_half_precision_is_summed_in_float32():
    arrays = [keras.ops.cast(x, "bfloat16") for x in inputs(scale=3.0)[:2]]
    labels = inputs()[2]
    exact = [tiny.numpy(x).astype("float64") for x in arrays]
    expected = definition(*exact, labels, None)[0]
    losses, _ = cross_entropy(*arrays, labels, chunk_size=3)
    assert keras.backend.standardize_dtype(losses.dtype) == "float32"
    # Logits of up to 16 may have been rounded to 8 bits; sums and logarithms were not.
    np.testing.assert_allclose(tiny.numpy(losses), expected, atol=2 * 16 * 2**-9)


def test_large_logits_stay_finite():
    hidden, embeddings, labels = inputs("float32", scale=1e3)
    losses, _ = cross_entropy(hidden, embeddings, labels, chunk_size=2)
    assert np.isfinite(tiny.numpy(losses)).all()
