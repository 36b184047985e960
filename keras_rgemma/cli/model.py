"""Loads the model of a command."""

import argparse
from typing import Any

from keras_rgemma.startup import without_startup_lines


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that choose a model and its sampler to a parser."""
    parser.add_argument(
        "--preset",
        default="rgemma_tiny_en",
        help="a name, folder or handle, as of RGemmaCausalLM.from_preset (%(default)s)",
    )
    parser.add_argument("--revision", help="of a preset on a hub")
    parser.add_argument("--dtype", help="of weights and computation, such as bfloat16")
    parser.add_argument("--sampler", default="greedy", help="a sampler of keras_hub (%(default)s)")
    parser.add_argument("--temperature", type=float, default=1.0, help="above 0 (%(default)s)")
    parser.add_argument("--seed", type=int, help="of the sampler, to get the same text again")
    parser.add_argument(
        "--max-new-tokens", type=int, default=256, metavar="N", help="at most (%(default)s)"
    )


def load_model(args: argparse.Namespace) -> Any:
    """Loads the `RGemmaCausalLM` that the arguments name, with their sampler."""
    with without_startup_lines():
        import keras

        from keras_rgemma.api import RGemmaCausalLM

    if args.seed is not None:
        keras.utils.set_random_seed(args.seed)
    lm = RGemmaCausalLM.from_preset(args.preset, revision=args.revision, dtype=args.dtype)
    lm.compile(sampler=args.sampler)
    lm.sampler.temperature = args.temperature
    return lm
