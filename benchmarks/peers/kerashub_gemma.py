"""Measures KerasHub's Gemma of the same size on the backend of KERAS_BACKEND; see work.py."""

import json
import pathlib

import keras_hub
import ours
import work


def make(args):
    """Makes a Gemma with random weights and with the sizes of the checkpoint."""
    config = json.loads((pathlib.Path(args.folder) / "config.json").read_text(encoding="utf-8"))
    backbone = keras_hub.models.GemmaBackbone(
        vocabulary_size=config["vocab_size"],
        num_layers=config["num_hidden_layers"],
        num_query_heads=config["num_attention_heads"],
        num_key_value_heads=1,
        hidden_dim=config["hidden_size"],
        intermediate_dim=config["intermediate_size"],  # of both halves, in both configs
        head_dim=config["hidden_size"] // config["num_attention_heads"],
        dtype=args.dtype,
    )
    return ours.KerasModel(keras_hub.models.GemmaCausalLM(backbone, preprocessor=None))


if __name__ == "__main__":
    work.measure(make, work.arguments(__doc__))
