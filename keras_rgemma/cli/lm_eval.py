"""Run EleutherAI's evaluation harness on a model.

    keras-rgemma lm-eval --tasks piqa,arc_easy --model_args pretrained=rgemma_2b_en
    keras-rgemma lm-eval --tasks gsm8k --num_fewshot 8 --model_args pretrained=my_preset
    keras-rgemma lm-eval --model_args pretrained=gemma_2b_en,library=keras-hub --tasks piqa

All arguments are those of the harness' own command `lm-eval`, which comes with `pip install
"keras-rgemma[eval]"`. Its --model is `keras-rgemma` unless another is named. `--model_args` are
pretrained, dtype, revision, quantize, library, shares_prefixes and max_gen_toks: see
`keras_rgemma.evaluation.harness.HarnessModel`. `keras-rgemma lm-eval run --help` lists the others.
"""

import argparse
import importlib
import sys
import types
from typing import Any

from keras_rgemma.startup import without_startup_lines

# Every argument is for the harness; `lm-eval run --help` is its own help.
PARSER_OPTIONS: dict[str, Any] = {"prefix_chars": "\0", "add_help": False}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this command to a parser."""
    parser.add_argument("arguments", nargs="*", metavar="ARGUMENT")
    parser.set_defaults(print_help=parser.print_help)


def run(args: argparse.Namespace) -> None:
    """Runs the harness' command with this package's model in it."""
    if args.arguments in ([], ["-h"], ["--help"]):
        args.print_help()
        return
    command, harness = import_with_harness("lm_eval.__main__", "keras_rgemma.evaluation.harness")
    before = sys.argv
    sys.argv = ["keras-rgemma lm-eval", *_with_model(args.arguments, harness.NAME)]
    try:
        command.cli_evaluate()
    finally:
        sys.argv = before


def import_with_harness(*names: str) -> list[types.ModuleType]:
    """Imports modules that need the harness; says how to install it where it is missing."""
    try:
        with without_startup_lines():
            return list(map(importlib.import_module, names))
    except ImportError as error:
        if (error.name or "").split(".")[0] != "lm_eval":
            raise
        raise ImportError(
            'The evaluation harness is not installed. Run `pip install "keras-rgemma[eval]"`.'
        ) from error


def _with_model(arguments: list[str], name: str) -> list[str]:
    """Names the model where a run of the harness names none."""
    if arguments[0] in ("ls", "validate"):
        return arguments
    arguments = arguments[1:] if arguments[0] == "run" else arguments
    names_model = any(x in ("-M", "--model") or x.startswith("--model=") for x in arguments)
    asks_help = {"-h", "--help"} & {*arguments}
    model = [] if names_model or asks_help else ["--model", name]
    return ["run", *model, *arguments]
