"""Continue a text.

    keras-rgemma generate "In the beginning"
    keras-rgemma generate - --preset rgemma_2b_en --sampler top_p < story.txt

The new text is printed as it is made. Ctrl-C ends it.
"""

import argparse
import sys

from keras_rgemma.cli.model import add_model_arguments, load_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this command to a parser."""
    parser.add_argument("prompt", metavar="PROMPT", help="the text; - reads it from standard input")
    add_model_arguments(parser)
    parser.add_argument(
        "--stop", action="append", metavar="STRING", help="a string that ends the text; repeatable"
    )


def run(args: argparse.Namespace) -> None:
    """Prints the prompt and the new text."""
    lm = load_model(args)
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    limits = {"max_new_tokens": args.max_new_tokens, "stop": args.stop}
    if lm.make_generate_function().is_stepwise:
        deltas = lm.stream(prompt, **limits)
    else:
        deltas = [lm.generate(prompt, strip_prompt=True, **limits)]
    print(prompt, end="", flush=True)
    for delta in deltas:
        print(delta, end="", flush=True)
    print()
