"""Small models with weights that leave nothing at zero, rows of every kind, and how to run both."""

from unittest import mock

import keras
import numpy as np

from compiled import compiled, to_numpy
from keras_rgemma import RGemmaBackbone, RGemmaCausalLM
from keras_rgemma.layers.rg_lru import RecurrenceInitializer

# A fresh model has zero biases and norm scales and a convolution that is nearly zero: faults in
# them would not be seen.
NOISE = {"bias": 0.3, "scale": 0.3, "a_param": 1.0, "conv_1d/kernel": 0.4}


def random_lm(seed, dtype=None, **config):
    """A language model whose every weight has an effect."""
    lm = _new(dtype, **config)
    set_random_weights(lm, seed)
    return lm


def with_weights_of(lm, dtype=None, **changes):
    """The same weights in a model of which a few arguments differ."""
    other = _new(dtype, **{**lm.backbone.config.to_dict(), **changes})
    copy_weights(lm, other)
    return other


def copy_weights(source, target):
    """Copies the weights, and the seeds of dropout."""
    for new, old in zip(target.variables, source.variables, strict=True):
        new.assign(to_numpy(old.value))


def set_random_weights(lm, seed, round_to="float32"):
    """Draws all weights anew: matrices as the initialisers do, noise where those put zeros."""
    rng = np.random.default_rng(seed)
    for variable in lm.weights:
        noise = rng.standard_normal(variable.shape, "float32")
        value = _mean(variable, rng) + _std(variable) * noise
        variable.assign(value.astype(np.dtype(round_to)).astype("float32"))


def _mean(variable, rng):
    if not variable.path.endswith("a_param"):
        return 0.0
    square = rng.uniform(0.9**2, 0.999**2, variable.shape).astype("float32")
    return np.log(np.expm1(-0.5 * np.log(square)))


def _std(variable):
    for end, std in NOISE.items():
        if variable.path.endswith(end):
            return std
    fan_in = variable.shape[1] if variable.path.endswith("embeddings") else variable.shape[-2]
    return fan_in**-0.5


def _new(dtype=None, **config):
    """A model of zeros: JAX takes ten seconds to compile the initialisers of a tiny model."""
    zeros = lambda self, shape, dtype=None: np.zeros(shape, dtype or "float32")  # noqa: E731
    with (
        mock.patch.object(keras.initializers.RandomNormal, "__call__", zeros),
        mock.patch.object(RecurrenceInitializer, "__call__", zeros),
    ):
        return RGemmaCausalLM(RGemmaBackbone(dtype=dtype, **config))


def random_rows(seed, length, vocabulary_size):
    """Four rows: plain, left-padded, right-padded, and packed with three documents and pads.

    The second document of the packed row takes up more than half of it.
    """
    rng = np.random.default_rng(seed)
    token_ids = rng.integers(0, vocabulary_size, (4, length)).astype("int32")
    mask = np.ones((4, length), "int32")
    mask[1, : length // 5] = 0
    mask[2, length - length // 4 :] = 0
    first, last = length // 4, 3
    second = length - first - last - 3
    mask[3] = np.repeat([0, 1, 2, 0, 3, 0], [1, first, second, 1, last, 1])
    return token_ids, mask


def logits_program(lm):
    """The model's logits as a function of arrays, compiled once whatever its weights become."""

    @compiled
    def run(weights, token_ids, padding_mask):
        inputs = {"token_ids": token_ids, "padding_mask": padding_mask}
        return lm.stateless_call(weights, [], inputs)[0]

    def program(token_ids, padding_mask):
        return run([v.value for v in lm.trainable_variables], token_ids, padding_mask)

    return program
