"""The gradients of a loss are DeepMind's, by each and every weight."""

from unittest import mock

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from keras import ops

from keras_rgemma.config import ATTENTION, RECURRENT
from keras_rgemma.layers import gated_mlp
from parity import deepmind
from parity.backend_gradients import loss_of_weights, weight_gradients, weight_values
from parity.random_models import logits_program, random_lm, random_rows, with_weights_of

# Forward and backward pass each add up some hundred terms in another order, in float32 (6e-8); ten
# times what was measured.
TOLERANCE = 2e-5

VOCABULARY = 31

# Widths are unlike each other, so that an axis taken for another fails.
SMALL = {
    "num_layers": 2,
    "hidden_dim": 16,
    "intermediate_dim": 20,
    "num_query_heads": 2,
    "lru_dim": 24,
    "block_types": (RECURRENT, ATTENTION),
    "sliding_window_size": 4,
}
CASES = {
    # name: (length, arguments)
    "griffin": (17, {**SMALL, "num_layers": 3, "block_types": (RECURRENT, RECURRENT, ATTENTION)}),
    # Longer than a chunk of the recurrence (32 steps) and a block of attention (32 queries).
    "longer, neither cap nor scale": (
        43,
        {
            "num_layers": 2,
            "hidden_dim": 24,
            "intermediate_dim": 28,
            "num_query_heads": 3,
            "lru_dim": 18,
            "block_types": (ATTENTION, RECURRENT),
            "sliding_window_size": 9,
            "final_logit_soft_cap": None,
            "scale_embeddings": False,
        },
    ),
}


def weighted_labels(seed, token_ids, mask):
    """The next token of each token, and a weight that is zero where the document has none."""
    labels = np.roll(token_ids, -1, axis=1)
    following = np.roll(mask, -1, axis=1)
    following[:, -1] = 0
    weights = np.random.default_rng(seed).uniform(0.5, 1.5, mask.shape)
    weights = weights * (mask > 0) * (mask == following)
    return labels, (weights / weights.sum()).astype("float32")


def losses(seed, token_ids, mask):
    """The same weighted cross-entropy for a Keras model and for DeepMind's."""
    labels, weights = weighted_labels(seed, token_ids, mask)
    one_hot = np.eye(VOCABULARY, dtype="float32")[labels] * weights[:, :, None]

    def ours(logits):
        return -ops.sum(ops.multiply(ops.log_softmax(logits, axis=-1), one_hot))

    def theirs(logits):
        return -jnp.sum(jax.nn.log_softmax(logits, axis=-1) * one_hot)

    return ours, theirs


def relative_difference(ours, theirs):
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


def gradient_pairs(lm, seed, token_ids, mask, dtype="float32"):
    """Our gradient and DeepMind's by the path of each weight."""
    our_loss, their_loss = losses(seed, token_ids, mask)
    ours = weight_gradients(lm, our_loss, token_ids, mask)
    tree = deepmind.gradients(lm.backbone, token_ids, mask, their_loss, dtype)
    pairs = {
        variable.path: (convert(ours[variable.path]), deepmind.gradient_at(tree, path))
        for path, variable, convert in deepmind.weights_of(lm.backbone)
    }
    assert pairs.keys() == ours.keys()
    return pairs


@pytest.mark.parametrize("name", CASES)
def test_every_gradient_is_deepminds(name):
    length, config = CASES[name]
    lm = random_lm(seed=length, vocabulary_size=VOCABULARY, **config)
    token_ids, mask = random_rows(length, length, VOCABULARY)
    # No floor: with random weights, biases and norm scales no gradient vanishes.
    for path, (ours, theirs) in gradient_pairs(lm, length, token_ids, mask).items():
        assert relative_difference(ours, theirs) <= TOLERANCE, path


def test_logits_and_gradients_are_deepminds_as_the_decay_goes_to_one():
    # 1 - a^2 goes down to 1e-12 here, and the slope of its root is bounded from 2.5e-7 on. In
    # float32 DeepMind's 1 - a^2 loses up to all its digits to cancellation: the truth is float64.
    lm = random_lm(seed=5, vocabulary_size=VOCABULARY, **SMALL)
    a_param = lm.backbone.transformer_layers[0].recurrent_block.rg_lru.a_param
    a_param.assign(np.linspace(-30.0, -5.0, a_param.shape[0], dtype="float32"))
    token_ids, mask = random_rows(5, 17, VOCABULARY)
    ours = logits_program(lm)(token_ids, mask)
    theirs = deepmind.logits(lm.backbone, token_ids, mask, "float64")
    assert relative_difference(ours[mask > 0], theirs[mask > 0]) <= TOLERANCE
    pairs = gradient_pairs(lm, 5, token_ids, mask, "float64")
    for path, (ours, theirs) in pairs.items():
        assert relative_difference(ours, theirs) <= TOLERANCE, path
    # Feature by feature, as these gradients are of all magnitudes. One number is a sum of a
    # hundred terms that cancel each other to some degree, so it keeps fewer digits.
    for feature, (one, other) in enumerate(zip(*pairs[a_param.path], strict=True)):
        assert relative_difference(one, other) <= 10 * TOLERANCE, feature


def test_gradients_are_the_same_when_activations_are_recomputed():
    # With dropout, which must not be drawn anew in the backward pass.
    layers = SMALL["num_layers"]
    lm = random_lm(seed=6, vocabulary_size=VOCABULARY, dropout=0.3, **SMALL)
    recomputing = with_weights_of(lm, gradient_checkpointing=True)
    token_ids, mask = random_rows(6, 17, VOCABULARY)
    loss, _ = losses(6, token_ids, mask)
    keras.utils.set_random_seed(6)
    kept = weight_gradients(lm, loss, token_ids, mask)
    keras.utils.set_random_seed(6)
    with mock.patch.object(gated_mlp, "gated_mlp", wraps=gated_mlp.gated_mlp) as mlp_calls:
        recomputed = weight_gradients(recomputing, loss, token_ids, mask)
    assert kept.keys() == recomputed.keys()
    for path, gradient in kept.items():
        # The same operations, which a compiler may put together in another way.
        assert relative_difference(recomputed[path], gradient) <= TOLERANCE, path
    # JAX traces a layer once and repeats what it recorded, the others call it twice.
    if keras.config.backend() == "jax":
        program = jax.make_jaxpr(jax.grad(loss_of_weights(recomputing, loss, token_ids, mask)))
        assert str(program(weight_values(recomputing))).count("= remat") >= layers
    else:
        assert mlp_calls.call_count == 2 * layers
