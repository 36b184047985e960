"""Runs the command `keras-rgemma`: one file a subcommand, each a thin cover of the Python API."""

import argparse
import importlib
import sys

COMMANDS = ("generate", "chat", "convert", "presets", "bench")


def main(arguments=None):
    """Runs a subcommand; returns 0, 1 after an error that it prints, or 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="keras-rgemma",
        description="RecurrentGemma for Keras, from the command line.",
    )
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = importlib.import_module(f"keras_rgemma.cli.{name}")
        summary, _, description = module.__doc__.partition("\n\n")
        subparser = subparsers.add_parser(
            name,
            help=summary,
            description=f"{summary}\n\n{description}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    args = parser.parse_args(arguments)
    try:
        args.run(args)
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"keras-rgemma: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("keras-rgemma: stopped", file=sys.stderr)
        return 130
    return 0
