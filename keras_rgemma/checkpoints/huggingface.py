"""Reads and writes the JSON files of a Hugging Face folder: `config.json` and the tokenizer's."""

import pathlib
from collections.abc import Container, Mapping
from typing import Any

from keras_rgemma.checkpoints import sentencepiece_model as spm
from keras_rgemma.checkpoints.chat_template import TEMPLATE
from keras_rgemma.config import RGemmaConfig, check_count
from keras_rgemma.files import write_json

CONFIG = "config.json"
TOKENIZER = "tokenizer.model"
# Names of transformers, and those of `config.ACTIVATIONS`. Of several names for one function the
# first is written. "prelu" and "xielu" have trained parameters, for which there is no place here.
ACTIVATIONS = {
    "gelu_pytorch_tanh": "gelu_tanh",
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_accurate", "gelu_python_tanh"), "gelu_tanh"),
    "gelu": "gelu",
    "gelu_python": "gelu",
    "silu": "silu",
    "swish": "silu",
    "hardswish": "hard_silu",
    "leaky_relu": "leaky_relu_0.01",
    **{
        name: name
        for name in (
            *("relu", "relu2", "relu6", "quick_gelu", "gelu_10", "tanh", "sigmoid"),
            *("linear", "mish", "laplace", "sqrtsoftplus"),
        )
    },
}
# Fields of `RGemmaConfig`, and their names in config.json, whose values are the same in both.
FIELDS = {
    "vocabulary_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "hidden_dim": "hidden_size",
    "num_query_heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "sliding_window_size": "attention_window_size",
    "conv_width": "conv1d_width",
    "layer_norm_epsilon": "rms_norm_eps",
}


def is_config(config: Container[str]) -> bool:
    """Checks whether the contents of a `config.json` are those of a Hugging Face folder."""
    return "model_type" in config


def is_recurrent_gemma(contents: Mapping[str, Any]) -> bool:
    """Checks whether the contents of a `config.json` are those of this architecture."""
    return contents.get("model_type") == "recurrent_gemma"


def config_from(contents: Mapping[str, Any]) -> RGemmaConfig:
    """Reads the architecture from a Hugging Face config.

    Args:
        contents: dict, the contents of `config.json`.

    Returns:
        `RGemmaConfig`.

    Raises:
        ValueError: the model is of another kind, a field is missing, or this package has no
            equivalent for a setting.
    """
    if not is_recurrent_gemma(contents):
        raise ValueError(
            "`model_type` in config.json must be 'recurrent_gemma'. Received: "
            f"{contents.get('model_type')!r}. Load other models with keras_hub."
        )
    block_types = contents.get("block_types") or contents.get("_block_types")
    wanted = (*FIELDS.values(), "intermediate_size", "hidden_activation")
    missing = [name for name in wanted if contents.get(name) is None]
    missing += [] if block_types else ["block_types"]
    if missing:
        raise ValueError(
            f"config.json lacks {missing}, which the architecture depends on. Take the config.json "
            "that was saved with the weights."
        )
    if contents.get("attention_bias"):
        raise ValueError(
            "`attention_bias` in config.json is true, but RGemmaBackbone has no biases on queries, "
            "keys and values, as no published checkpoint has them. This model cannot be loaded."
        )
    if check_count("intermediate_size", contents["intermediate_size"]) % 2:
        raise ValueError(
            "`intermediate_size` in config.json counts both branches of the MLP, so it must be "
            f"even. Received: {contents['intermediate_size']}."
        )
    if str(contents["hidden_activation"]) not in ACTIVATIONS:
        raise ValueError(
            f"`hidden_activation` in config.json must be one of {list(ACTIVATIONS)}. Received: "
            f"{contents['hidden_activation']!r}."
        )
    return RGemmaConfig(
        **{field: contents[name] for field, name in FIELDS.items()},
        **_rope_from(contents),
        intermediate_dim=contents["intermediate_size"] // 2,
        lru_dim=contents.get("lru_width"),
        block_types=block_types,
        final_logit_soft_cap=contents.get("logits_soft_cap", 30.0) or None,
        scale_embeddings=contents.get("embeddings_scale_by_sqrt_dim", True),
        activation=ACTIVATIONS[contents["hidden_activation"]],
    )


def _rope_from(contents: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the settings of RoPE, which newer versions of transformers keep in a nested dict."""
    nested = contents.get("rope_parameters") or {}
    if not isinstance(nested, dict):
        raise ValueError(
            f"`rope_parameters` in config.json must be a dict. Received: {nested!r}. Take the "
            "config.json that was saved with the weights."
        )
    rope = {**contents, **nested}
    kind = rope.get("rope_type", "default")
    if kind != "default" or contents.get("rope_scaling"):
        raise ValueError(
            "RGemmaBackbone has the default RoPE only. Received in config.json: rope_type="
            f"{kind!r}, rope_scaling={contents.get('rope_scaling')!r}. This model "
            "cannot be loaded."
        )
    return {
        "rope_max_wavelength": rope.get("rope_theta", 10_000.0),
        "rope_fraction": rope.get("partial_rotary_factor", 0.5),
    }


def config_of(config: RGemmaConfig, dtype: str) -> dict[str, Any]:
    """Makes the contents of `config.json` for an architecture.

    Args:
        config: `RGemmaConfig`.
        dtype: str, the dtype of the weights.

    Returns:
        dict.

    Raises:
        ValueError: transformers' model has no equivalent for a setting.
    """
    fixed = {
        "head_dim": (config.key_size, config.hidden_dim / config.num_query_heads),
        "scale_embeddings": (config.scale_embeddings, True),
    }
    for name, (value, constant) in fixed.items():
        if value != constant:
            raise ValueError(
                f"`{name}` is {value} here and always {constant} in transformers' RecurrentGemma, "
                "so this model cannot be written for it. Keep it with `save_to_preset`."
            )
    if config.final_logit_soft_cap is None:
        raise ValueError(
            "`final_logit_soft_cap` is None, but transformers' RecurrentGemma always has a cap, so "
            "this model cannot be written for it. Keep it with `save_to_preset`."
        )
    return {
        "architectures": ["RecurrentGemmaForCausalLM"],
        "model_type": "recurrent_gemma",
        **{name: getattr(config, field) for field, name in FIELDS.items()},
        "intermediate_size": 2 * config.intermediate_dim,
        "lru_width": config.recurrence_width,
        "block_types": list(config.block_types),
        "logits_soft_cap": config.final_logit_soft_cap,
        "embeddings_scale_by_sqrt_dim": True,
        # Several names mean the same activation; the first is the usual one.
        "hidden_activation": next(
            name for name, ours in ACTIVATIONS.items() if ours == config.activation
        ),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": config.rope_max_wavelength,
            "partial_rotary_factor": config.rope_fraction,
        },
        # Versions before 5 read these two instead.
        "rope_theta": config.rope_max_wavelength,
        "partial_rotary_factor": config.rope_fraction,
        "attention_bias": False,
        "tie_word_embeddings": True,
        "dtype": dtype,
    }


def write_tokenizer_config(folder: pathlib.Path, tokenizer: Any) -> None:
    """Writes the settings of a tokenizer that transformers needs beside its SentencePiece model.

    transformers reads the chat template here, in every version. From version 5 on it writes its own
    into chat_template.jinja, which counts where both are there.

    Args:
        folder: `pathlib.Path`.
        tokenizer: `RGemmaTokenizer`.
    """
    vocabulary = set(tokenizer.get_vocabulary())
    has_turns = {tokenizer.start_of_turn, tokenizer.end_token2} <= vocabulary
    ends = [tokenizer.end_token_id, getattr(tokenizer, "end_token2_id", None)]
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "GemmaTokenizer",
            "add_bos_token": True,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "added_tokens_decoder": _added_tokens(tokenizer),
            # Otherwise transformers adds one, for which the model has no embedding.
            **({} if "<mask>" in vocabulary else {"mask_token": None}),
            **({"chat_template": TEMPLATE} if has_turns else {}),
        },
    )
    write_json(
        folder / "generation_config.json",
        {
            "bos_token_id": tokenizer.start_token_id,
            "eos_token_id": [id for id in ends if id is not None],
            "pad_token_id": tokenizer.pad_token_id,
        },
    )


def _added_tokens(tokenizer: Any) -> dict[str, dict[str, Any]]:
    """Describes the tokens that are recognised in text, a dict of an id to the settings of one.

    Without it transformers shows `<end_of_turn>` in the texts that it makes, and no pieces with a
    space in them would be recognised.
    """
    standard = (*tokenizer.special_tokens, tokenizer.start_of_turn, tokenizer.end_token2)
    recognised = (spm.CONTROL, spm.UNKNOWN, spm.USER_DEFINED)
    kinds = spm.kinds_of(tokenizer.proto)
    return {
        str(id): {
            "content": piece,
            "lstrip": False,
            "normalized": "\u2581" in piece,  # found once spaces are written so
            "rstrip": False,
            "single_word": False,
            "special": kind in (spm.CONTROL, spm.UNKNOWN)
            or piece in standard
            or piece.replace("\u2581", " ") in tokenizer.control_tokens,
        }
        for id, (piece, kind) in enumerate(zip(tokenizer.get_vocabulary(), kinds, strict=True))
        if kind in recognised
    }
