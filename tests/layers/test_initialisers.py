"""Weights start as DeepMind's do: distribution by distribution, as the design lists them."""

import keras
import numpy as np
import pytest

from compiled import to_numpy
from keras_rgemma import RGemmaBackbone
from keras_rgemma.config import RGemmaConfig
from keras_rgemma.layers.rg_lru import RecurrenceInitializer

CONFIG = RGemmaConfig(
    vocabulary_size=300,
    num_layers=2,
    hidden_dim=96,
    intermediate_dim=160,
    num_query_heads=4,
    num_key_value_heads=2,
    head_dim=40,
    lru_dim=128,
    block_types=("recurrent", "attention"),
)
D, M, L, H, K = 96, 160, 128, 4, 40
# Projections back into the residual stream count 2 / num_layers, here 1: see the deeper test.
STANDARD_DEVIATIONS = {
    "token_embedding/embeddings": D**-0.5,
    "block_0/recurrent_block/linear_x/kernel": D**-0.5,
    "block_0/recurrent_block/linear_y/kernel": D**-0.5,
    "block_0/recurrent_block/conv_1d/kernel": 0.05,
    "block_0/recurrent_block/rg_lru/input_gate/kernel": L**-0.5,
    "block_0/recurrent_block/rg_lru/a_gate/kernel": L**-0.5,
    "block_0/recurrent_block/linear_out/kernel": L**-0.5,
    "block_1/attention_block/query/kernel": D**-0.5,
    "block_1/attention_block/key/kernel": D**-0.5,
    "block_1/attention_block/value/kernel": D**-0.5,
    "block_1/attention_block/attention_output/kernel": (H * K) ** -0.5,
    **{f"block_{i}/mlp_block/ffw_gate/kernel": (2 * D) ** -0.5 for i in (0, 1)},
    **{f"block_{i}/mlp_block/ffw_up/kernel": (2 * D) ** -0.5 for i in (0, 1)},
    **{f"block_{i}/mlp_block/ffw_down/kernel": M**-0.5 for i in (0, 1)},
}


def weights_of(config):
    keras.utils.set_random_seed(0)
    backbone = RGemmaBackbone(**config.to_dict())
    return {weight.path: to_numpy(weight.value) for weight in backbone.weights}


@pytest.fixture(scope="module")
def weights():
    return weights_of(CONFIG)


def check_normal(values, deviation):
    """Mean, standard deviation and tails of a normal distribution that nothing cut off."""
    values = values.ravel() / deviation
    # Five times the standard error of each estimate.
    assert abs(values.mean()) < 5.0 / np.sqrt(len(values))
    assert abs(values.std() - 1.0) < 5.0 / np.sqrt(2 * len(values))
    # 4.6 % of a normal sample is beyond two deviations, and none of a truncated one.
    assert np.mean(np.abs(values) > 2.0) == pytest.approx(0.0455, abs=5 * (0.0455 / 512) ** 0.5)


@pytest.mark.parametrize("path", STANDARD_DEVIATIONS)
def test_kernels_start_normal(weights, path):
    assert weights[path].size >= 512
    check_normal(weights[path], STANDARD_DEVIATIONS[path])


def test_every_other_weight_is_zero_but_the_decays(weights):
    rest = [path for path in weights if path not in STANDARD_DEVIATIONS and "a_param" not in path]
    assert {path.rsplit("/", 1)[-1] for path in rest} == {"bias", "scale"}
    for path in rest:
        np.testing.assert_array_equal(weights[path], np.zeros_like(weights[path]))


def test_no_two_weights_are_the_same_draw(weights):
    drawn = [weights[path].ravel()[:500] for path in STANDARD_DEVIATIONS]
    for i, first in enumerate(drawn):
        for second in drawn[:i]:
            size = min(len(first), len(second))
            correlation = np.corrcoef(first[:size], second[:size])[0, 1]
            assert abs(correlation) < 0.3  # of 500 independent values: 0.04


def test_deeper_models_start_with_smaller_projections_into_the_residual_stream():
    deeper = {**CONFIG.to_dict(), "num_layers": 8, "vocabulary_size": 3}
    drawn = weights_of(RGemmaConfig(**deeper))
    shrunk = ("linear_out", "attention_output", "ffw_down")
    for path, deviation in STANDARD_DEVIATIONS.items():
        if path.startswith("block"):
            factor = 0.5 if path.split("/")[-2] in shrunk else 1.0  # sqrt(2 / 8)
            check_normal(drawn[path], factor * deviation)


def test_squared_radii_start_uniform():
    a_param = to_numpy(RecurrenceInitializer(seed=1)((4000,))).astype("float64")
    radius = np.exp(-np.log1p(np.exp(a_param)))
    share = np.sort((radius**2 - 0.9**2) / (0.999**2 - 0.9**2))
    # Kolmogorov and Smirnov: a uniform sample is further off once in 10,000 times.
    assert np.abs(share - np.linspace(0.0, 1.0, 4000)).max() < 2.23 / np.sqrt(4000)
    # float32 keeps the radii within the bounds to a few parts in a million.
    assert share[0] > -1e-5 and share[-1] < 1.0 + 1e-5


def test_layers_draw_different_decays():
    config = RGemmaConfig(**{**CONFIG.to_dict(), "block_types": ["recurrent"]})
    drawn = weights_of(config)
    first, second = (drawn[f"block_{i}/recurrent_block/rg_lru/a_param"] for i in (0, 1))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.5  # of 128 independent values: 0.09


def test_the_initialiser_of_decays_is_the_same_for_the_same_seed():
    first = RecurrenceInitializer(seed=5)
    again = RecurrenceInitializer.from_config(first.get_config())
    np.testing.assert_array_equal(to_numpy(first((9,))), to_numpy(again((9,))))
    assert np.abs(to_numpy(RecurrenceInitializer(seed=6)((9,))) - to_numpy(first((9,)))).max() > 0.1
