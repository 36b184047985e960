"""The float32 logits are those of transformers' RecurrentGemma, until its window is full.

A second reference, for what DeepMind's code has no setting for: several key/value heads and other
activations. From position W on it shows W keys instead of W + 1.
"""

import numpy as np
import pytest
import torch
import transformers

from compiled import to_numpy
from parity.random_models import logits_program, random_lm, random_rows

# As in test_logits.py.
TOLERANCE = 2e-5

VOCABULARY = 37
LENGTH = 19
ACTIVATIONS = {"gelu_tanh": "gelu_pytorch_tanh", "gelu": "gelu", "silu": "silu", "relu": "relu"}
CASES = {
    "recurrentgemma": {
        "num_layers": 3,
        "hidden_dim": 24,
        "intermediate_dim": 40,
        "num_query_heads": 2,
        "lru_dim": 32,
        "sliding_window_size": 11,
    },
    "two key/value heads, silu": {
        "num_layers": 4,
        "hidden_dim": 32,
        "intermediate_dim": 28,
        "num_query_heads": 4,
        "num_key_value_heads": 2,
        "lru_dim": 24,
        "block_types": ("recurrent", "attention"),
        "sliding_window_size": 13,
        "activation": "silu",
        "rope_max_wavelength": 500.0,
    },
    "three heads of each, relu, longer convolution": {
        "num_layers": 2,
        "hidden_dim": 24,
        "intermediate_dim": 20,
        "num_query_heads": 3,
        "num_key_value_heads": 3,
        "lru_dim": 42,
        "block_types": ("attention", "recurrent"),
        "sliding_window_size": 19,
        "activation": "relu",
        "conv_width": 6,
        "final_logit_soft_cap": 3.0,
    },
    "gelu, another epsilon, all of a head rotated": {
        "num_layers": 2,
        "hidden_dim": 24,
        "intermediate_dim": 20,
        "num_query_heads": 2,
        "lru_dim": 16,
        "block_types": ("recurrent", "attention"),
        "sliding_window_size": 16,
        "activation": "gelu",
        "layer_norm_epsilon": 0.1,
        "rope_fraction": 1.0,
    },
}


def their_model(backbone):
    """Transformers' model with our weights; none may be left over on either side."""
    config = backbone.config
    model = transformers.RecurrentGemmaForCausalLM(
        transformers.RecurrentGemmaConfig(
            vocab_size=config.vocabulary_size,
            num_hidden_layers=config.num_layers,
            hidden_size=config.hidden_dim,
            intermediate_size=2 * config.intermediate_dim,
            num_attention_heads=config.num_query_heads,
            num_key_value_heads=config.num_key_value_heads,
            lru_width=config.recurrence_width,
            attention_window_size=config.sliding_window_size,
            conv1d_width=config.conv_width,
            logits_soft_cap=config.final_logit_soft_cap,
            rms_norm_eps=config.layer_norm_epsilon,
            hidden_activation=ACTIVATIONS[config.activation],
            rope_parameters={
                "rope_type": "default",
                "rope_theta": config.rope_max_wavelength,
                "partial_rotary_factor": config.rope_fraction,
            },
            block_types=list(config.block_types),
            attn_implementation="eager",
        )
    )
    state = {name: torch.tensor(value) for name, value in their_weights(backbone)}
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, strict=True)
    return model.eval()


def their_weights(backbone):
    """Pairs of a name in transformers' files and our values in their layout."""

    def dense(name, layer):
        yield f"{name}.weight", to_numpy(layer.kernel.value).T
        if layer.bias is not None:
            yield f"{name}.bias", to_numpy(layer.bias.value)

    yield "model.embed_tokens.weight", to_numpy(backbone.token_embedding.embeddings.value)
    yield "model.final_norm.weight", to_numpy(backbone.final_norm.scale.value)
    for i, block in enumerate(backbone.transformer_layers):
        root = f"model.layers.{i}"
        for name in ("temporal_pre_norm", "channel_pre_norm"):
            yield f"{root}.{name}.weight", to_numpy(getattr(block, name).scale.value)
        for name in ("gate", "up", "down"):
            layer = getattr(block.mlp_block, f"ffw_{name}")
            yield from dense(f"{root}.mlp_block.{name}_proj", layer)
        temporal, root = block.temporal_block, f"{root}.temporal_block"
        if block.block_type == "attention":
            for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v")):
                yield from dense(f"{root}.{theirs}_proj", getattr(temporal, ours))
            yield from dense(f"{root}.o_proj", temporal.attention_output)
            continue
        for name in ("linear_x", "linear_y", "linear_out"):
            yield from dense(f"{root}.{name}", getattr(temporal, name))
        kernel = to_numpy(temporal.conv_1d.kernel.value)
        yield f"{root}.conv_1d.weight", kernel.T[:, None]
        yield f"{root}.conv_1d.bias", to_numpy(temporal.conv_1d.bias.value)
        rg_lru = temporal.rg_lru
        yield f"{root}.rg_lru.recurrent_param", to_numpy(rg_lru.a_param.value)
        for ours, theirs in ((rg_lru.input_gate, "input"), (rg_lru.a_gate, "recurrent")):
            bias = to_numpy(ours.bias.value)
            yield f"{root}.rg_lru.{theirs}_gate_weight", to_numpy(ours.kernel.value)
            yield f"{root}.rg_lru.{theirs}_gate_bias", bias.reshape(len(bias), -1)


def error(ours, theirs):
    return np.max(np.abs(ours - theirs) / np.maximum(1.0, np.abs(theirs)))


@pytest.mark.parametrize("name", CASES)
def test_logits_are_theirs_until_the_window_is_full(name):
    lm = random_lm(seed=11, vocabulary_size=VOCABULARY, **CASES[name])
    # Rows without pads, through which transformers' recurrence and convolution would leak.
    token_ids, _ = random_rows(11, LENGTH, VOCABULARY)
    ours = logits_program(lm)(token_ids, np.ones_like(token_ids))
    model = their_model(lm.backbone)
    with torch.no_grad():
        theirs = model(torch.tensor(token_ids, dtype=torch.int64), use_cache=False).logits.numpy()
    window = lm.backbone.sliding_window_size
    assert error(ours[:, :window], theirs[:, :window]) <= TOLERANCE
