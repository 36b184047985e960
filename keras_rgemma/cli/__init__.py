"""Runs the command `keras-rgemma`: one file a subcommand, each a thin cover of the Python API.

Help and typing errors need these files alone: each imports the package in `run`, when it works.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from keras_rgemma import __version__

COMMANDS = (
    "generate",
    "chat",
    "convert",
    "presets",
    "bench",
    "plan",
    "evaluate",
    "lm-eval",
    "verify",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand; returns its exit code, 1 after an error, or 130 after Ctrl-C.

    Args:
        arguments: list of str; None for those of this process.
    """
    parser = argparse.ArgumentParser(
        prog="keras-rgemma",
        description="RecurrentGemma for Keras, from the command line.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = importlib.import_module(f"keras_rgemma.cli.{name.replace('-', '_')}")
        summary, _, description = module.__doc__.partition("\n\n")
        subparser = subparsers.add_parser(
            name,
            help=summary,
            description=f"{summary}\n\n{description}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **getattr(module, "PARSER_OPTIONS", {}),
        )
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    args = parser.parse_args(arguments)
    if arguments is None:
        _quiet()
    try:
        code = args.run(args)
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        print(f"keras-rgemma: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("keras-rgemma: stopped", file=sys.stderr)
        return 130
    return code or 0


def _quiet() -> None:
    """Tells TensorFlow, which KerasHub loads on every backend, to write nothing but errors.

    For the process of the command alone: in a program of others the choice is theirs.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
