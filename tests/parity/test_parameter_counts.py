"""The presets are DeepMind's architectures, with exactly their parameters; no weight is made."""

import json
import math
import pathlib

import jax
import keras
import psutil
import pytest
from recurrentgemma import common

from keras_rgemma import RGemmaBackbone
from keras_rgemma.checkpoints.presets import presets
from keras_rgemma.config import RGemmaConfig
from parity import deepmind

ARCHITECTURES = {
    "rgemma_2b_en": common.Preset.RECURRENT_GEMMA_2B_V1,
    "rgemma_instruct_2b_en": common.Preset.RECURRENT_GEMMA_2B_V1,
    "rgemma_9b_en": common.Preset.RECURRENT_GEMMA_9B_V1,
    "rgemma_instruct_9b_en": common.Preset.RECURRENT_GEMMA_9B_V1,
    "griffin_7b": common.Preset.GRIFFIN_PAPER_7B,
    "hawk_7b": common.Preset.HAWK_PAPER_7B,
}
# "2.7B" and "8.6B" in table 1 of RecurrentGemma (arXiv 2404.07839), of its second version.
COUNTS = {"rgemma_2b_en": 2_682_862_080, "rgemma_9b_en": 8_579_977_216}
MEGABYTE = 2**20


def config_of(preset):
    saved = json.loads((pathlib.Path(presets()[preset]["path"]) / "config.json").read_text())
    fields = RGemmaConfig.__dataclass_fields__
    return RGemmaConfig(**{k: v for k, v in saved["config"].items() if k in fields})


@pytest.fixture
def unborn_variables():
    """A scope whose variables never get a value."""
    with keras.StatelessScope(initialize_variables=False):
        yield
    # Keras has noted them, to initialise them at the end of the next scope.
    keras.utils.clear_session()


@pytest.mark.parametrize("preset", ARCHITECTURES)
def test_the_architecture_is_deepminds(preset):
    theirs = common.GriffinConfig.from_preset(ARCHITECTURES[preset])
    assert deepmind.griffin_config(config_of(preset)) == theirs


@pytest.mark.parametrize("preset", COUNTS)
def test_the_count_from_the_sizes_is_deepminds(preset):
    config = config_of(preset)
    tokens = jax.ShapeDtypeStruct((1, 2), "int32")
    tree = jax.eval_shape(deepmind.model(config).init, jax.random.key(0), tokens, tokens)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)) == COUNTS[preset]
    assert config.parameter_count == COUNTS[preset]


@pytest.mark.parametrize("preset", COUNTS)
def test_the_model_has_as_many_weights(preset, unborn_variables):
    before = psutil.Process().memory_info().rss
    backbone = RGemmaBackbone(**config_of(preset).to_dict())
    assert sum(math.prod(variable.shape) for variable in backbone.weights) == COUNTS[preset]
    # The weights would be 10,000 MB or more.
    assert psutil.Process().memory_info().rss - before < 300 * MEGABYTE


@pytest.mark.parametrize("preset", presets())
def test_the_metadata_states_what_the_config_makes(preset):
    assert presets()[preset]["parameter_count"] == config_of(preset).parameter_count
