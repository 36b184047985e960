"""Continue a text.

    keras-rgemma generate "In the beginning"
    keras-rgemma generate - --preset rgemma_2b_en --sampler top_p < story.txt

The new text is written as it is made. Ctrl-C ends it.
"""

import sys

from keras_rgemma.cli.model import add_model_arguments, load_model


def add_arguments(parser):
    """The arguments of this command."""
    parser.add_argument("prompt", metavar="PROMPT", help="the text; - reads it from standard input")
    add_model_arguments(parser)
    parser.add_argument(
        "--stop", action="append", metavar="STRING", help="a string that ends the text; repeatable"
    )


def run(args):
    """Writes the prompt and what follows."""
    lm = load_model(args)
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    limits = {"max_new_tokens": args.max_new_tokens, "stop": args.stop}
    if lm.make_generate_function().is_stepwise:
        pieces = lm.stream(prompt, **limits)
    else:
        pieces = [lm.generate(prompt, strip_prompt=True, **limits)]
    print(prompt, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
