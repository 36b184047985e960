"""`score` looks at given tokens with the same forward pass as training."""

import keras
import numpy as np
import pytest

import tiny


@pytest.fixture(scope="module")
def lm():
    return tiny.randomize(tiny.causal_lm())


def test_logits_are_those_of_the_model(lm):
    inputs = tiny.arrays()
    scored = tiny.numpy(lm.score(**inputs))
    called = tiny.numpy(lm(inputs))
    tokens = inputs["padding_mask"] > 0
    # A compiled program sums float32 in another order.
    np.testing.assert_allclose(scored[tokens], called[tokens], atol=1e-5)


def check_losses(lm, inputs, **kwargs):
    """The losses of targets are those of the logits, and they alone are made of these."""
    targets = np.roll(inputs["token_ids"], -1, axis=1)
    losses = tiny.numpy(lm.score(**inputs, **kwargs, scoring_mode="loss", target_ids=targets))
    logits = tiny.numpy(lm.score(**inputs, **kwargs)).astype("float64")
    log_sum = np.log(np.exp(logits).sum(axis=-1))
    chosen = np.take_along_axis(logits, targets[:, :, None], axis=2)[:, :, 0]
    assert losses.shape == targets.shape
    # float32 against float64 of numbers near 6.
    np.testing.assert_allclose(losses, log_sum - chosen, atol=1e-5)


def test_losses_are_the_cross_entropy_of_the_targets(lm):
    check_losses(lm, tiny.arrays())
    check_losses(lm, tiny.arrays(), layer_intercept_fn=lambda x, _: 1.5 * x)


def test_losses_after_a_state(lm):
    prompts = {"token_ids": np.array([[2, 300, 301], [2, 302, 303]])}
    prompts["padding_mask"] = np.ones((2, 3), "int32")
    check_losses(lm, tiny.arrays(), state=lm.prefill(prompts))


@pytest.mark.parametrize("mode", [None, "int8", "int4"])
def test_losses_are_computed_for_some_tokens_at_a_time(mode, monkeypatch):
    """With a quantized head, too, whose inputs are rounded."""
    monkeypatch.setattr("keras_rgemma.ops.cross_entropy.CHUNK_LOGITS", 3 * 400)
    lm = tiny.randomize(tiny.causal_lm())
    if mode:
        lm.quantize(mode)
    seen, compute_logits = set(), type(lm).compute_logits

    def watched(self, hidden):
        seen.add(tuple(hidden.shape[:-1]))
        return compute_logits(self, hidden)

    monkeypatch.setattr(type(lm), "compute_logits", watched)
    check_losses(lm, tiny.arrays())
    in_logits = {(2, 16)}  # padded to a power of two
    assert seen == in_logits | ({(3,)} if mode else set())


def test_packed_documents_are_scored_each_for_itself(lm):
    ids = tiny.arrays()["token_ids"][:1].repeat(2, axis=0)
    alone = np.roll(ids, -3, axis=1)
    mask = np.array([[1, 1, 1, 2, 2, 2, 2], [1, 1, 1, 1, 0, 0, 0]])
    packed, alone = tiny.numpy(lm.score(np.stack([ids[0], alone[0]]), mask))
    np.testing.assert_allclose(packed[3:], alone[:4], atol=1e-5)


def test_the_intercept_sees_and_replaces_every_layers_output(lm):
    inputs = tiny.arrays()
    plain = tiny.numpy(lm.score(**inputs))
    seen = []

    def watch(x, index):
        seen.append((index, tuple(x.shape)))
        return x

    watched = tiny.numpy(lm.score(**inputs, layer_intercept_fn=watch))
    np.testing.assert_allclose(watched, plain, atol=1e-5)
    assert seen == [(index, (2, 7, 16)) for index in (-1, 0, 1)]
    for index in (-1, 0, 1):
        changed = lm.score(
            **inputs,
            layer_intercept_fn=lambda x, i, at=index: x * (2.0 if i == at else 1.0) + (i == at),
        )
        assert np.abs(tiny.numpy(changed) - plain).max() > 1e-3, index


def test_bad_arguments_are_named(lm):
    inputs = tiny.arrays()
    with pytest.raises(ValueError, match="'perplexity'"):
        lm.score(**inputs, scoring_mode="perplexity")
    with pytest.raises(ValueError, match="target_ids"):
        lm.score(**inputs, scoring_mode="loss")
    with pytest.raises(ValueError, match=r"\(2, 7\).*\(2, 5\)"):
        lm.score(**inputs, scoring_mode="loss", target_ids=inputs["token_ids"][:, :5])
    with pytest.raises(ValueError, match="400"):
        lm.score(np.full((2, 7), 400))
    assert keras.ops.shape(lm.score(**inputs)) == (2, 7, 400)


def test_scores_are_arrays_of_the_shape_of_the_ids(lm):
    ids = np.arange(4, 300, 3)[None, :41]
    for length in (1, 15, 17, 41):
        assert np.array(lm.score(ids[:, :length])).shape == (1, length, 400)


def test_lengths_seen_before_compile_nothing(lm, monkeypatch):
    if keras.backend.backend() == "torch":
        pytest.skip("nothing is compiled on PyTorch")
    traced, logits = [], type(lm).compute_logits
    monkeypatch.setattr(
        type(lm), "compute_logits", lambda self, *args: traced.append(1) or logits(self, *args)
    )
    other = type(lm)(lm.backbone)
    for length in (16, 9, 1):
        other.score(np.full((2, length), 5))
    assert len(traced) == 1


def test_without_a_compiler_the_scores_are_the_same(lm):
    inputs = tiny.arrays()
    expected = tiny.numpy(lm.score(**inputs))
    other = type(lm)(lm.backbone)
    other.compile(jit_compile=False)
    np.testing.assert_allclose(tiny.numpy(other.score(**inputs)), expected, atol=1e-5)


def test_tensorflow_records_gradients_through_score(lm):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("only TensorFlow records what is computed outside of a function")
    import tensorflow as tf

    inputs = tiny.arrays()
    with tf.GradientTape(persistent=True) as tape:
        scored = tf.reduce_sum(lm.score(**inputs) ** 2)
        called = tf.reduce_sum(lm(inputs) ** 2)
    weights = [weight.value for weight in lm.trainable_variables]
    gradients = (tape.gradient(x, weights) for x in (scored, called))
    for one, other in zip(*gradients, strict=True):
        one, other = tf.convert_to_tensor(one), tf.convert_to_tensor(other)
        # float32 in another order, of sums over 14 tokens.
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)
