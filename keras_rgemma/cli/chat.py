"""Talk with an instruction-tuned model.

    keras-rgemma chat --preset rgemma_instruct_2b_en --dtype bfloat16
    keras-rgemma chat --system "Answer in one line."
    keras-rgemma chat --load evening.rgstate

Ctrl-C ends an answer and keeps the conversation; Ctrl-D leaves. A line that begins with / is a
command: /save FILE writes the conversation, /quit leaves.
"""

import argparse
import contextlib
import importlib
import sys
from typing import Any

from keras_rgemma.cli.model import add_model_arguments, load_model
from keras_rgemma.interrupts import no_lost_interrupts, raise_lost_interrupt


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this command to a parser."""
    add_model_arguments(parser)
    beginning = parser.add_mutually_exclusive_group()
    beginning.add_argument(
        "--load", metavar="FILE", help="go on with a conversation that was saved"
    )
    beginning.add_argument(
        "--system", metavar="TEXT", help="instructions, in front of the first message"
    )


def run(args: argparse.Namespace) -> None:
    """Reads messages and writes answers until the input ends."""
    lm = load_model(args)
    options = {"max_new_tokens": args.max_new_tokens}
    history = [{"role": "system", "content": args.system}] if args.system else []
    chat = lm.load_chat(args.load, **options) if args.load else lm.chat(history, **options)
    while (line := _read()) is not None:
        if not line.strip():
            continue
        if not line.startswith("/"):
            _answer(lm, chat, line)
        elif line.split() == ["/quit"]:
            return
        else:
            _command(chat, line)


def _read() -> str | None:
    """Reads the next line; returns None at the end of the input."""
    is_person = sys.stdin.isatty()
    if is_person:
        with contextlib.suppress(ImportError):  # Windows has no readline
            importlib.import_module("readline")  # gives `input` a line that can be edited
    try:
        return input("> " if is_person else "")
    except EOFError:
        return None
    except KeyboardInterrupt:
        print()
        return ""


def _answer(lm: Any, chat: Any, message: str) -> None:
    """Prints the answer to a message as it is made, until it ends or Ctrl-C is pressed."""
    try:
        with no_lost_interrupts():
            streams = lm.make_generate_function().is_stepwise
            for text in chat.stream(message) if streams else [chat.send(message)]:
                print(text, end="", flush=True)
                raise_lost_interrupt()
    except KeyboardInterrupt:
        print(end=" ...")
    except ValueError as error:  # the message is no text
        print(f"keras-rgemma: {error}", file=sys.stderr)
    print()


def _command(chat: Any, line: str) -> None:
    """Runs a line that begins with a slash."""
    name, _, file = line.partition(" ")
    if name != "/save" or not file.strip():
        print(f"Unknown command {line!r}. There are: /save FILE, /quit.", file=sys.stderr)
        return
    try:
        chat.save(file.strip())
        print(f"Wrote {file.strip()}.")
    except (OSError, KeyboardInterrupt) as error:
        print(f"keras-rgemma: nothing was written: {error or 'stopped'}", file=sys.stderr)
