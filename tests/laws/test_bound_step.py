"""The functions of raw tensors that decode on PyTorch compute what the layers compute."""

import functools

import keras
import numpy as np
import pytest
from keras import ops

import tiny
from generation import plain
from keras_rgemma.layers.gated_mlp import GatedMLP

pytestmark = [
    pytest.mark.skipif(
        keras.config.backend() != "torch", reason="other backends compile the layers themselves"
    ),
]
# Orders of summation differ; in half precision and in integers a rounding step may, too.
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.06, "mixed_bfloat16": 0.06}


def plain_model(dtype="float32"):
    return plain.lively_model(dtype=dtype, num_query_heads=4, num_key_value_heads=2, gain=1.0)


def with_lora(dtype="float32"):
    lm = plain_model(dtype)
    lm.backbone.enable_lora(3, alpha=5)
    return randomized(lm)


def randomized(lm):
    """The model with an adapter that changes its outputs, but multiplies no rounding."""
    random = np.random.RandomState(4)
    for weight in lm.backbone.trainable_weights:
        weight.assign(random.normal(0, 0.1, weight.shape))
    return lm


def merged():
    lm = with_lora()
    lm.backbone.merge_lora()
    return lm


def quantized(mode, lora=False, dtype="float32"):
    lm = plain_model(dtype)
    lm.quantize(mode)
    if not lora:
        return lm
    lm.backbone.enable_lora(2)
    return randomized(lm)


class Doubled(keras.layers.Layer):
    """A user's wrapper that changes what an MLP gives."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.built = True

    def call(self, x):
        return 2.0 * self.inner(x)


class DoubledMLP(GatedMLP):
    """A user's subclass that does."""

    def call(self, x):
        return 2.0 * super().call(x)


def wrapped(wrapper=Doubled):
    lm = plain_model()
    block = lm.backbone.transformer_layers[1]
    block._tracker.unlock()  # as Keras asks of whoever changes a model that is built
    block.mlp_block = wrapper(block.mlp_block)
    block._tracker.lock()
    return lm


def subclassed():
    lm = plain_model()
    lm.backbone.transformer_layers[0].mlp_block.__class__ = DoubledMLP
    return lm


def with_a_call_of_its_own():
    lm = plain_model()
    layer = lm.backbone.transformer_layers[1].attention_block
    call = layer.call
    layer.call = lambda *args, **kwargs: call(*args, **kwargs)
    return lm


def of_other_settings():
    return plain.lively_model(
        gain=1.0,
        num_key_value_heads=2,
        final_logit_soft_cap=None,
        activation="silu",
        scale_embeddings=True,
        rope_fraction=1.0,
        conv_width=2,
    )


CASES = {
    "plain": plain_model,
    "bfloat16": lambda: plain_model("bfloat16"),
    "mixed_bfloat16": lambda: plain_model("mixed_bfloat16"),
    "LoRA": with_lora,
    "LoRA, mixed_bfloat16": lambda: with_lora("mixed_bfloat16"),
    "merged": merged,
    "int8": lambda: quantized("int8"),
    "int4": lambda: quantized("int4"),
    "LoRA, int8": lambda: quantized("int8", lora=True),
    "LoRA, int4": lambda: quantized("int4", lora=True),
    "LoRA, int8, mixed_bfloat16": lambda: quantized("int8", True, "mixed_bfloat16"),
    "a wrapped layer": wrapped,
    "a subclass": subclassed,
    "a call of its own": with_a_call_of_its_own,
    "other settings": of_other_settings,
}


@functools.cache
def model(name):
    """The model of a case, one for all tests."""
    return CASES[name]()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("length", [1, 9])
def test_the_bound_step_is_that_of_the_layers(name, length):
    lm = model(name)
    check_same_step(lm, bound_model(lm), length)


@pytest.mark.parametrize("name", CASES)
def test_it_sees_weights_that_change_after_it_was_bound(name):
    lm = model(name)
    bound = bound_model(lm)
    random = np.random.RandomState(9)
    for weight in lm.trainable_weights:
        value = tiny.numpy(weight)
        weight.assign(value + random.normal(0, 0.05, value.shape))
    check_same_step(lm, bound, 1)


def bound_model(lm):
    from keras_rgemma.generation.torch.binding import bind

    return lm.bound(bind)


def check_same_step(lm, bound, length):
    import torch

    random = np.random.RandomState(0)
    ids = ops.convert_to_tensor(random.randint(1, 61, (3, 7 + length)).astype("int32"))
    ones = ops.ones((3, 7), "int32")
    mask = np.ones((3, length), "int32")
    mask[1, length // 2 :] = 0
    with torch.no_grad():
        _, state = lm.step(ids[:, :7], ones, lm.initial_state(3))
        hidden, state_after = lm.step(ids[:, 7:], ops.convert_to_tensor(mask), state)
        expected = lm.compute_logits(hidden), hidden
        hidden, bound_state = bound.step(ids[:, 7:], ops.convert_to_tensor(mask), state)
        found = bound.compute_logits(hidden), hidden
    name = lm.dtype_policy.name
    tolerance = TOLERANCE["mixed_bfloat16" if "bfloat16" in name else "float32"]
    kept = mask.astype(bool)
    scale = 1.0
    for one, other in zip(found, expected, strict=True):
        scale = max(1.0, np.abs(tiny.numpy(other)[kept]).max())
        difference = np.abs(tiny.numpy(one) - tiny.numpy(other))[kept].max()
        assert difference <= tolerance * scale
    for one, other in zip(*map(keras.tree.flatten, (bound_state, state_after)), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(
            tiny.numpy(one), tiny.numpy(other), rtol=0, atol=tolerance * scale
        )
