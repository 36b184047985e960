"""What the fine-tuning examples share: their data, their options and their reports.

The data are what Python's own modules say of themselves, as questions and answers: the first
sentence of each docstring of some modules of the standard library. A tenth of it is held out.
"""

import argparse
import importlib
import inspect
import zlib

MODULES = """
    builtins math cmath random statistics itertools functools operator collections heapq bisect
    string re textwrap json csv os os.path sys time datetime calendar pathlib shutil tempfile glob
    fnmatch io gzip zipfile tarfile hashlib hmac secrets base64 struct array copy pprint enum
    dataclasses decimal fractions threading queue subprocess signal socket ssl email urllib.parse
    http.client logging argparse unittest inspect ast dis tokenize types typing weakref contextlib
"""


def conversations():
    """Lists of turns to learn from, and such that are held out."""
    found = {}
    for name in MODULES.split():
        for member, value in inspect.getmembers(importlib.import_module(name), callable):
            text = " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())
            answer = text.split(". ")[0].rstrip(".") + "."
            if not member.startswith("_") and 20 < len(answer) < 120 and "(" not in answer:
                found[f"What does {name}.{member} do in Python?"] = answer
    learned, held_out = [], []
    for question, answer in sorted(found.items()):
        turns = [{"role": "user", "content": question}, {"role": "model", "content": answer}]
        # The same split on every machine.
        (held_out if zlib.crc32(question.encode()) % 10 == 0 else learned).append(turns)
    return learned, held_out


def parser(description, learning_rate, epochs=2):
    """The options that the examples have in common."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--preset", default="rgemma_tiny_en", help="a name, a folder, or hf://...")
    made.add_argument("--dtype", help="such as bfloat16")
    made.add_argument("--epochs", type=int, default=epochs)
    made.add_argument("--batch_size", type=int, default=8)
    made.add_argument("--learning_rate", type=float, default=learning_rate)
    made.add_argument("--examples", type=int, help="how many to learn from; all by default")
    return made


def report(lm, held_out, when, batch_size):
    """Prints and returns the loss of a token of held-out answers; prints two answers."""
    results = lm.evaluate(held_out, batch_size=batch_size, verbose=0, return_dict=True)
    _, _, counted = lm.preprocessor(held_out)
    loss = results["loss"] / counted.mean()  # Keras divides by all positions
    print(f"{when}: held-out loss {loss:.3f}")
    for turns in held_out[:2]:
        question = turns[0]["content"]
        print("  ", question, "->", lm.chat(max_new_tokens=24).send(question))
    return loss
