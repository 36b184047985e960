"""The configuration: each rule is enforced, each field has an effect, the sizes add up."""

import ast
import dataclasses
import functools
import json
import pathlib
import sys

import keras
import numpy as np
import pytest
from keras import ops

import keras_rgemma.config
import tiny
from compiled import compiled, to_numpy
from keras_rgemma import RGemmaBackbone
from keras_rgemma.config import ACTIVATIONS, RGemmaConfig, round_to_bfloat16

SMALL = {
    "vocabulary_size": 37,
    "num_layers": 2,
    "hidden_dim": 12,
    "intermediate_dim": 14,
    "num_query_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "lru_dim": 10,
    "block_types": ("recurrent", "attention"),
    "sliding_window_size": 3,
}
COUNTS = (
    "vocabulary_size",
    "num_layers",
    "hidden_dim",
    "intermediate_dim",
    "num_query_heads",
    "num_key_value_heads",
    "head_dim",
    "lru_dim",
    "sliding_window_size",
    "conv_width",
)
BROKEN = [
    *[(name, value, name) for name in COUNTS for value in (0, -3, 2.5, True, "7")],
    ("final_logit_soft_cap", 0.0, "positive"),
    ("final_logit_soft_cap", -30.0, "positive"),
    ("final_logit_soft_cap", float("nan"), "positive"),
    ("rope_max_wavelength", 1.0, "greater than 1"),
    ("rope_max_wavelength", -10_000, "greater than 1"),
    ("rope_fraction", -0.5, "between 0 and 1"),
    ("rope_fraction", 1.5, "between 0 and 1"),
    ("layer_norm_epsilon", 0.0, "positive"),
    ("layer_norm_epsilon", -1e-6, "positive"),
    ("dropout", -0.1, "at least 0 and below 1"),
    ("dropout", 1.0, "at least 0 and below 1"),
    ("activation", "softmax", "one of"),
    ("block_types", (), "at least one"),
    ("block_types", ("recurrent", "conv"), "conv"),
    ("block_types", "recurrent", "list or tuple"),
    ("block_types", None, "list or tuple"),
    ("final_logit_soft_cap", "30", "positive"),
    ("rope_max_wavelength", None, "greater than 1"),
    ("rope_fraction", True, "between 0 and 1"),
    ("dropout", "a", "at least 0 and below 1"),
    ("scale_embeddings", "no", "True or False"),
    ("gradient_checkpointing", 1, "True or False"),
]


def config(**changes):
    return RGemmaConfig(**{**SMALL, **changes})


@pytest.mark.parametrize("name, value, rule", BROKEN)
def test_a_value_that_breaks_a_rule_is_named(name, value, rule):
    with pytest.raises(ValueError, match=f"`{name}`.*Received: ") as error:
        config(**{name: value})
    received = "conv" if value == ("recurrent", "conv") else value
    assert repr(received) in str(error.value)
    assert rule in str(error.value)


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"head_dim": None, "num_query_heads": 5, "hidden_dim": 12}, ["=5", "=12", "`head_dim`"]),
        ({"num_query_heads": 2, "num_key_value_heads": 3}, ["=3", "=2"]),
        ({"num_query_heads": 4, "lru_dim": 10}, ["=4", "=10", "`lru_dim`"]),
        ({"num_query_heads": 5, "lru_dim": None}, ["=5", "=12", "`lru_dim`"]),
        ({"head_dim": 6}, ["=0.5", "=6", "3.0"]),  # three features cannot be split in halves
        ({"head_dim": 7}, ["=0.5", "=7", "3.5"]),
    ],
)
def test_sizes_that_do_not_divide_are_both_named(changes, named):
    with pytest.raises(ValueError) as error:
        config(**changes)
    for part in named:
        assert part in str(error.value)


def test_rules_of_blocks_that_are_not_there_do_not_apply():
    config(block_types=("attention",), lru_dim=7)
    config(block_types=("recurrent",), head_dim=7)


def test_whole_numbers_of_numpy_are_counts():
    made = config(hidden_dim=np.int64(12), num_layers=np.int32(2))
    assert made == config() and type(made.hidden_dim) is int


def test_a_fraction_that_is_no_binary_number_still_divides():
    assert 50 * 0.28 != 14
    assert config(head_dim=50, rope_fraction=0.28).rotated_size == 14


def test_an_unknown_field_is_an_error():
    with pytest.raises(TypeError, match="slidng_window_size"):
        config(slidng_window_size=3)


def test_it_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        config().hidden_dim = 8


def test_a_dict_of_json_types_makes_the_same_config():
    nones = dict.fromkeys(("head_dim", "lru_dim", "final_logit_soft_cap"))
    for original in (config(), config(rope_fraction=1.0, **nones)):
        plain = original.to_dict()
        assert set(plain) == {field.name for field in dataclasses.fields(RGemmaConfig)}
        assert RGemmaConfig(**json.loads(json.dumps(plain))) == original
        assert hash(RGemmaConfig(**plain)) == hash(original)


def test_block_types_are_cycled():
    layers = config(num_layers=5, block_types=["recurrent", "recurrent", "attention"]).layer_types
    assert layers == ("recurrent", "recurrent", "attention", "recurrent", "recurrent")


@pytest.mark.parametrize("hidden_dim, scale", [(2560, 50.5), (4096, 64.0)])
def test_the_embedding_scale_is_the_one_of_training(hidden_dim, scale):
    assert config(hidden_dim=hidden_dim).embedding_scale == scale
    assert config(hidden_dim=hidden_dim, scale_embeddings=False).embedding_scale == 1.0


def test_rounding_to_bfloat16_is_that_of_the_backend():
    values = np.random.default_rng(0).uniform(1.0, 300.0, size=200).astype("float32")
    # 1 + 2^-8 and 1 + 3 * 2^-8 lie in the middle of two, and go to the even one.
    values = np.append(values, [1.0, 1.0 + 2.0**-8, 1.0 + 3 * 2.0**-8])
    truth = to_numpy(ops.cast(ops.convert_to_tensor(values, "float32"), "bfloat16"))
    assert [round_to_bfloat16(float(value)) for value in values] == truth.tolist()


# === The model that a config makes ===


def random_config(seed):
    random = np.random.default_rng(seed)
    heads = int(random.integers(1, 5))
    patterns = [["recurrent"], ["attention"], ["recurrent", "attention", "attention"]]
    return RGemmaConfig(
        vocabulary_size=int(random.integers(3, 50)),
        num_layers=int(random.integers(1, 4)),
        hidden_dim=heads * int(random.integers(1, 9)),
        intermediate_dim=int(random.integers(1, 30)),
        num_query_heads=heads,
        num_key_value_heads=int(random.choice([n for n in range(1, 5) if heads % n == 0])),
        head_dim=4 * int(random.integers(1, 4)),
        lru_dim=None if seed % 2 else heads * int(random.integers(1, 7)),
        block_types=patterns[seed % 3],
        conv_width=int(random.integers(1, 6)),
    )


@pytest.mark.parametrize("seed", range(4))
def test_parameters_are_counted_without_building_the_model(seed):
    drawn = random_config(seed)
    assert drawn.parameter_count == RGemmaBackbone(**drawn.to_dict()).count_params()


@pytest.mark.parametrize(
    "folder, count", [("rgemma_2b_en", 2_682_862_080), ("rgemma_9b_en", 8_579_977_216)]
)
def test_the_published_sizes_have_their_published_counts(folder, count):
    presets = pathlib.Path(__file__).parent.parent / "presets"
    saved = json.loads((presets / folder / "config.json").read_text())["config"]
    fields = {field.name for field in dataclasses.fields(RGemmaConfig)}
    published = RGemmaConfig(**{key: value for key, value in saved.items() if key in fields})
    assert published.parameter_count == count


def test_a_backbone_keeps_its_config():
    backbone = RGemmaBackbone(**SMALL)
    assert backbone.config == config()
    assert RGemmaBackbone.from_config(backbone.get_config()).config == config()
    # What was None stays None, so that a saved config is the one that was given.
    assert RGemmaBackbone(**{**SMALL, "lru_dim": None}).get_config()["lru_dim"] is None


# What changes each field, and where the change can be seen.
SEEN_IN_SHAPES = {
    "vocabulary_size": 38,
    "num_layers": 3,
    "hidden_dim": 14,
    "intermediate_dim": 15,
    "num_query_heads": 1,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "lru_dim": 8,
    "block_types": ("attention", "recurrent"),
    "conv_width": 3,
}
SEEN_IN_LOGITS = {
    "sliding_window_size": 2,
    "final_logit_soft_cap": 2.0,
    "scale_embeddings": False,
    "rope_max_wavelength": 500,
    "rope_fraction": 0.25,
    "activation": "silu",
    "layer_norm_epsilon": 0.1,
}
SEEN_IN_TRAINING = {"dropout": 0.5, "gradient_checkpointing": True}
TOKENS = np.random.default_rng(0).integers(0, 37, (2, 7)).astype("int32")


def test_every_field_has_a_test_of_its_effect():
    tested = [*SEEN_IN_SHAPES, *SEEN_IN_LOGITS, *SEEN_IN_TRAINING]
    assert sorted(tested) == sorted(field.name for field in dataclasses.fields(RGemmaConfig))


@functools.cache
def base():
    """The small model with random weights (norms and biases, too)."""
    backbone = RGemmaBackbone(**SMALL)
    random = np.random.default_rng(0)
    backbone.set_weights([random.normal(scale=0.5, size=w.shape) for w in backbone.weights])
    return backbone


def changed(name, value):
    """The small model with one field changed and, where they fit, the same weights."""
    return RGemmaBackbone(**{**SMALL, name: value})


@pytest.mark.parametrize("name", SEEN_IN_SHAPES)
def test_a_change_of_size_shows_in_the_weights(name):
    shapes = lambda backbone: {w.path: tuple(w.shape) for w in backbone.weights}  # noqa: E731
    backbone = changed(name, SEEN_IN_SHAPES[name])
    assert shapes(backbone) != shapes(base())
    assert backbone.count_params() == backbone.config.parameter_count


def logits_of(backbone):
    def run(token_ids):
        hidden = backbone({"token_ids": token_ids, "padding_mask": ops.ones_like(token_ids)})
        return backbone.token_embedding(hidden, reverse=True)

    return compiled(run)(TOKENS)


@functools.cache
def base_logits():
    return logits_of(base())


@pytest.mark.parametrize("name", SEEN_IN_LOGITS)
def test_a_change_of_mathematics_shows_in_the_logits(name):
    backbone = changed(name, SEEN_IN_LOGITS[name])
    backbone.set_weights(base().get_weights())
    # A thousand times the noise of float32, at logits of magnitude 1 to 30.
    assert np.abs(logits_of(backbone) - base_logits()).max() > 1e-2


@pytest.mark.parametrize("value", ACTIVATIONS)
def test_every_activation_is_its_own_function(value):
    backbone = changed("activation", value)
    backbone.set_weights(base().get_weights())
    difference = np.abs(logits_of(backbone) - base_logits()).max()
    # The tanh formula is within 5e-4 of the exact one, which is above the noise of float32.
    assert (difference == 0.0) if value == "gelu_tanh" else (difference > 1e-5)


def test_no_cap_lets_logits_grow():
    backbone = changed("final_logit_soft_cap", None)
    backbone.set_weights(base().get_weights())
    free = logits_of(backbone)
    # float32: a hyperbolic tangent.
    np.testing.assert_allclose(30.0 * np.tanh(free / 30.0), base_logits(), rtol=1e-5, atol=1e-5)
    assert np.abs(free - base_logits()).max() > 1e-3


def test_dropout_shows_in_training_only():
    backbone = changed("dropout", SEEN_IN_TRAINING["dropout"])
    backbone.set_weights(base().get_weights())
    np.testing.assert_array_equal(logits_of(backbone), base_logits())
    inputs = {"token_ids": TOKENS, "padding_mask": np.ones_like(TOKENS)}

    def run(training):
        with keras.StatelessScope():  # the state of the random numbers stays inside
            return backbone(inputs, training=training)

    without, dropped = (compiled(lambda t=training: run(t))() for training in (False, True))
    assert np.abs(dropped - without).max() > 1e-2


def weights_and_loss(backbone):
    """Some weights of a model, and a scalar function of nothing that depends on them."""
    weights = [layer.mlp_block.ffw_up.kernel for layer in backbone.transformer_layers]

    def loss():
        inputs = {"token_ids": TOKENS, "padding_mask": np.ones_like(TOKENS)}
        return ops.mean(ops.square(backbone(inputs, training=True)))

    return weights, loss


def gradients_and_recomputations(backbone):
    """Gradients, and how often layers are computed anew in the backward pass."""
    weights, loss = weights_and_loss(backbone)
    if keras.config.backend() == "jax":
        import jax

        def stateless(values):
            with keras.StatelessScope(state_mapping=zip(weights, values, strict=True)):
                return loss()

        gradient = jax.grad(stateless)
        values = [weight.value for weight in weights]
        text = str(jax.make_jaxpr(gradient)(values))
        marks = text.count("checkpoint[") + text.count("remat2[") + text.count("remat[")
        return jax.jit(gradient)(values), marks
    calls = tiny.calls_of(layer.mlp_block for layer in backbone.transformer_layers)
    forward = []
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        @tf.function  # as `fit` does it
        def gradient():
            with tf.GradientTape() as tape:
                value = loss()
            forward.extend(calls)
            return tape.gradient(value, [w.value for w in weights])

        return gradient(), len(calls) - len(forward)
    import torch

    value = loss()
    forward.extend(calls)
    found = torch.autograd.grad(value, [w.value for w in weights])
    return found, len(calls) - len(forward)


def test_gradient_checkpointing_computes_layers_twice_and_the_same_gradients():
    """With dropout, as what the second computation drops must be what the first one dropped."""
    runs = []
    for recompute in (False, True):
        keras.utils.set_random_seed(0)
        backbone = RGemmaBackbone(**SMALL, dropout=0.5, gradient_checkpointing=recompute)
        backbone.set_weights(base().get_weights())
        runs.append(gradients_and_recomputations(backbone))
    (expected, none), (found, some) = runs
    assert none == 0
    assert some >= SMALL["num_layers"]
    for one, other in zip(found, expected, strict=True):
        assert np.abs(to_numpy(other)).max() > 1e-3
        # The same operations in float32; compilers may fuse them in another way.
        np.testing.assert_allclose(to_numpy(one), to_numpy(other), rtol=1e-5, atol=1e-6)


def test_a_model_with_gradient_checkpointing_goes_on_from_a_state():
    recomputing = changed("gradient_checkpointing", True)
    recomputing.set_weights(base().get_weights())
    args = TOKENS, np.ones_like(TOKENS), to_numpy(base().initial_state(2))
    found, expected = (compiled(model.step)(*args) for model in (recomputing, base()))
    for one, other in zip(keras.tree.flatten(found), keras.tree.flatten(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)  # the same in float32


def test_the_file_of_the_config_imports_the_standard_library_only():
    tree = ast.parse(pathlib.Path(keras_rgemma.config.__file__).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {name for node in imports for name in imported_names(node)}
    assert names and names <= sys.stdlib_module_names


def imported_names(node):
    if isinstance(node, ast.ImportFrom):
        return {"." if node.level else node.module.split(".")[0]}
    return {alias.name.split(".")[0] for alias in node.names}
