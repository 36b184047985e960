"""Convert a checkpoint into another format.

    keras-rgemma convert path/to/recurrentgemma-2b my_preset --to keras
    keras-rgemma convert my_preset for_transformers --to transformers --dtype bfloat16

SOURCE is a preset, folder or handle, as of `RGemmaCausalLM.from_preset`. The folder DESTINATION
gets its name at the end, so it is complete or not there. The whole model is in memory meanwhile.
"""

import pathlib

from keras_rgemma import RGemmaCausalLM
from keras_rgemma.checkpoints import export
from keras_rgemma.checkpoints.folder import open_checkpoint
from keras_rgemma.checkpoints.hub import WEIGHTS
from keras_rgemma.checkpoints.presets import resolve_model, saved_dtype
from keras_rgemma.files import check_free, new_folder


def add_arguments(parser):
    """Adds the arguments of this command to a parser."""
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("destination", metavar="DESTINATION")
    parser.add_argument("--to", choices=("keras", *export.TARGETS), required=True)
    parser.add_argument("--revision", help="of a SOURCE on a hub: a branch, tag, commit or version")
    parser.add_argument(
        "--dtype",
        choices=list(export.DTYPES),
        help="of the weights that are written (the dtype of the source)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the checkpoint that is there"
    )


def run(args):
    """Converts the checkpoint, and prints the name of the new folder."""
    check_free(args.destination, args.overwrite)
    if pathlib.Path(args.destination).resolve() in pathlib.Path(args.source).resolve().parents:
        raise ValueError(
            f"The destination {args.destination!r} is a folder around the source {args.source!r}. "
            "Choose another place."
        )
    source, _ = resolve_model(args.source, WEIGHTS, args.revision)  # of an adapter its base
    checkpoint = open_checkpoint(source)
    dtype = args.dtype or (checkpoint.dtype if checkpoint else saved_dtype(source))
    if dtype is not None and dtype not in export.DTYPES:
        raise ValueError(
            f"The weights are {dtype}, which is not written. Pass --dtype, one of "
            f"{list(export.DTYPES)}."
        )
    lm = RGemmaCausalLM.from_preset(args.source, revision=args.revision, dtype=dtype)
    if args.to == "keras":
        with new_folder(args.destination, args.overwrite) as folder:
            lm.save_to_preset(folder)
    else:
        tokenizer = getattr(lm.preprocessor, "tokenizer", None)
        export.export(lm.backbone, tokenizer, args.destination, args.to, dtype, args.overwrite)
    print(f"Wrote {args.destination}, for {args.to}, in {lm.dtype_policy.variable_dtype}.")
