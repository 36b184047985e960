"""Compares many prompts in rows that stay busy with batches of as many prompts in turn.

    python benchmarks/many_prompts.py
    python benchmarks/many_prompts.py --size tiny --backends jax --prompts 40 --write many_prompts

The prompts have 1 to 300 tokens and fixed budgets of 5 to 400 new tokens (both drawn evenly). What
these lengths allow at best is the steps of the batches in turn, each as many as its longest budget,
over those of rows that are never idle, the sum of the budgets over the rows. "share" is what is
reached of it, in time, the reading of prompts included. Half the prompts are run first, so that
both ways have compiled what they need. "alone" tells how many of some prompts got the tokens that
they get alone, and "growth" how much the peak of the process grew from half of the prompts to all.
"""

import argparse
import json
import pathlib
import shlex
import sys
import time

import numpy as np

import keras_rgemma
from keras_rgemma.backend import BACKENDS
from keras_rgemma.benchmarks.machine import (
    ceilings,
    commit_of,
    host,
    in_child,
    resident_peak_bytes,
    versions,
)
from keras_rgemma.benchmarks.measure import SIZES
from keras_rgemma.files import write_json
from keras_rgemma.generation.generate import decode_many, start
from keras_rgemma.generation.prompts import Batch
from keras_rgemma.generation.request import Request

HERE = pathlib.Path(__file__).resolve().parent
COLUMNS = "{:<11}{:>11}{:>9}{:>9}{:>9}{:>8}{:>9}{:>11}"
NAMES = ("backend", "in turn s", "busy s", "gain", "at best", "share", "alone", "growth MB")
ALONE = 8  # prompts that are compared


def workload(size, count, scale):
    """Makes random prompts and budgets.

    Returns:
        A list of `count` int32 arrays, and an int array of their budgets.
    """
    random = np.random.RandomState(0)
    lengths = random.randint(1, max(2, int(300 * scale)) + 1, count)
    budgets = random.randint(max(1, int(5 * scale)), int(400 * scale) + 1, count)
    vocabulary = SIZES[size]["vocabulary_size"]
    return [random.randint(3, vocabulary, length).astype("int32") for length in lengths], budgets


def steps(budgets, rows):
    """Counts the steps of batches of `rows` in turn, and of rows that are never idle."""
    in_turn = sum(max(budgets[start : start + rows]) for start in range(0, len(budgets), rows))
    return in_turn, sum(budgets) / rows


def measure(args):
    """Runs both ways on this backend and returns the dict of what was found."""
    lm = keras_rgemma.RGemmaCausalLM(keras_rgemma.RGemmaBackbone(**SIZES[args.size]))
    lm.compile(sampler="greedy")
    prompts, budgets = workload(args.size, args.prompts, args.scale)
    programs = lm.make_generate_function()

    def batch_of(prompts, budgets, **kwargs):
        request = Request.of(lm, stop_token_ids=None, **kwargs)
        return Batch(prompts, [int(x) for x in budgets], request, is_text=False)

    def busy(count):
        batch = batch_of(prompts[:count], budgets[:count], batch_size=args.rows)
        return decode_many(lm, batch, programs)[0]

    def in_turn(count):
        for first in range(0, count, args.rows):
            part = slice(first, min(first + args.rows, count))
            start(lm, batch_of(prompts[part], budgets[part]), False, programs).next()

    def seconds(run):
        before = time.perf_counter()
        return run(args.prompts), time.perf_counter() - before

    for run in (in_turn, busy):
        run(args.prompts // 2)
    peak = resident_peak_bytes()
    _, turns = seconds(in_turn)
    texts, rows = seconds(busy)
    growth = resident_peak_bytes() - peak
    alone = [
        start(lm, batch_of(prompts[i : i + 1], budgets[i : i + 1]), False, programs).next()[0]
        for i in range(min(ALONE, args.prompts))
    ]
    equal = sum(np.array_equal(*pair) for pair in zip(alone, texts, strict=False))
    return {
        "in_turn_s": turns,
        "busy_s": rows,
        "equal": int(equal),
        "alone": len(alone),
        "growth": growth,
    }


def cells(result, budgets, rows):
    """Returns the cells of a line of the table, strings."""
    in_turn, least = steps(budgets, rows)
    gain, best = result["in_turn_s"] / result["busy_s"], in_turn / least
    return (
        f"{result['in_turn_s']:.1f}",
        f"{result['busy_s']:.1f}",
        f"{gain:.2f}",
        f"{best:.2f}",
        f"{gain / best:.0%}",
        f"{result['equal']}/{result['alone']}",
        f"{result['growth'] / 1e6:.0f}",
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--size", choices=SIZES, default="110m")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--scale", type=float, default=1.0, help="of all lengths and budgets")
    parser.add_argument("--write", metavar="NAME", help="write results/NAME.json and NAME.md")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args)))
        return
    _, budgets = workload(args.size, args.prompts, args.scale)
    report = {
        "command": shlex.join(["python", *sys.argv]),
        "commit": commit_of(HERE),
        "machine": host(),
        "versions": {name: v for name, v in versions().items() if name != "commit"},
        "ceilings": ceilings(),
        "results": {},
    }
    print(COLUMNS.format(*NAMES))
    options = [f"--{name}={getattr(args, name)}" for name in ("size", "prompts", "rows", "scale")]
    failed = False
    lines = ["# Many prompts", "", f"```\n{report['command']}  # {report['commit']}\n```", ""]
    lines += [f"| {' | '.join(NAMES)} |", "|---" * len(NAMES) + "|"]
    for backend in args.backends:
        result = in_child(backend, str(HERE / "many_prompts.py"), "--measure", *options)
        report["results"][backend] = result
        failed |= "error" in result
        found = [result["error"]] if "error" in result else cells(result, budgets, args.rows)
        print(COLUMNS.format(backend, *found) if len(found) > 1 else f"{backend}  {found[0]}")
        lines.append(f"| {backend} | {' | '.join(found)} |")
    if args.write:
        write_json(HERE / "results" / f"{args.write}.json", report)
        (HERE / f"{args.write}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(json.dumps(report))
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
