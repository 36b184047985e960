"""Check a checkpoint against DeepMind's implementation.

    keras-rgemma verify rgemma_2b_en
    keras-rgemma verify my_preset --against hf://google/recurrentgemma-2b
    keras-rgemma verify hf://google/recurrentgemma-9b-it --dtype bfloat16 --backends jax

Loads the weights here, on each backend that is installed, and in DeepMind's `recurrentgemma`, which
`pip install "keras-rgemma[reference]"` installs: one after the other, each in a process of its own.
On a fixed set of texts it compares tokens, the output and the state of every layer, logits and
greedy texts. Prints tables to be pasted into an issue, with the largest activation of every layer
beside the largest float16 number, and a last line: `equal`, or `different: first at layer N`. The
exit code is 0 if all is equal and 1 otherwise.
"""

import argparse

from keras_rgemma.choices import BACKENDS, DTYPES, REFERENCES
from keras_rgemma.startup import without_startup_lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this command to a parser."""
    parser.add_argument("preset", metavar="PRESET", help="a name, folder or handle")
    parser.add_argument(
        "--against",
        metavar="CHECKPOINT",
        help="another checkpoint for the reference: the original of a converted PRESET (the same)",
    )
    parser.add_argument(
        "--reference",
        choices=("auto", *REFERENCES),
        default="auto",
        help="the implementation to compare with; transformers is right up to the window and "
        "without pads, so less is compared (the first that is installed)",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="of weights and computation; float32 compares sharply, bfloat16 needs half of the "
        "memory of a GPU or TPU (%(default)s)",
    )
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, help="(all that are installed)")
    parser.add_argument("--revision", help="of a PRESET on a hub: a branch, tag or commit")
    parser.add_argument(
        "--new-tokens",
        type=int,
        default=32,
        metavar="N",
        help="of a greedy text; 0 for none (%(default)s)",
    )
    parser.add_argument(
        "--no-memory-check", action="store_true", help="load models that seem not to fit"
    )


def run(args: argparse.Namespace) -> int:
    """Compares, prints the report, and returns 0 if all is equal, otherwise 1."""
    with without_startup_lines():
        from keras_rgemma.evaluation.verify import verify

    report = verify(
        args.preset,
        against=args.against,
        reference=args.reference,
        dtype=args.dtype,
        backends=args.backends,
        revision=args.revision,
        new_tokens=args.new_tokens,
        check_memory=not args.no_memory_check,
    )
    print(report)
    return 0 if report.is_equal else 1
