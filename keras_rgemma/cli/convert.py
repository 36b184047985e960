"""Convert a checkpoint into another format.

    keras-rgemma convert path/to/recurrentgemma-2b my_preset --to keras
    keras-rgemma convert my_preset for_transformers --to transformers --dtype bfloat16

SOURCE is a preset, folder or handle, as of `RGemmaCausalLM.from_preset`. The folder DESTINATION
gets its name at the end, so it is complete or not there. The whole model is in memory meanwhile.
"""

import argparse

from keras_rgemma.choices import DTYPES, FORMATS
from keras_rgemma.startup import without_startup_lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this command to a parser."""
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("destination", metavar="DESTINATION")
    parser.add_argument("--to", choices=FORMATS, required=True)
    parser.add_argument("--revision", help="of a SOURCE on a hub: a branch, tag, commit or version")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="of the weights that are written (the dtype of the source)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the checkpoint that is there"
    )


def run(args: argparse.Namespace) -> None:
    """Converts the checkpoint, and prints the name of the new folder."""
    with without_startup_lines():
        from keras_rgemma.model.conversion import convert

    written = convert(
        args.source, args.destination, args.to, args.revision, args.dtype, args.overwrite
    )
    print(f"Wrote {args.destination}, for {args.to}, in {written}.")
