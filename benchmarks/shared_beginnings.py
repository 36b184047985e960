"""Measures what it saves to read the beginning that few-shot prompts share once.

    python benchmarks/shared_beginnings.py
    python benchmarks/shared_beginnings.py --write shared_beginnings

Prompts have the form of MMLU with five examples: in each subject the same five come before each
question, and four answers of one token are scored. Each backend has a process of its own, in which
scoring with and without shared beginnings alternates; the ratio is the median over the pairs. The
weights are random, of the size 110m by default. `--write NAME` writes
benchmarks/results/NAME.json and benchmarks/NAME.md. The last line is the same as JSON.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import time

import reports
from against_peers import markdown
from publish import publish

from keras_rgemma.backend import BACKENDS
from keras_rgemma.benchmarks.machine import host, in_child, versions

FOLDER = pathlib.Path(__file__).resolve().parent
# Tokens of MMLU's prompts with SentencePiece vocabularies, about: five examples, and a question.
EXAMPLES, QUESTION, ANSWERS = 500, 80, 4


def requests_of(subjects, questions, vocabulary_size):
    """Makes pairs of a context and a continuation, lists of token ids, of random tokens."""
    import numpy as np

    random = np.random.default_rng(0)

    def tokens(length):
        return random.integers(3, vocabulary_size, length).tolist()

    pairs = []
    for _ in range(subjects):
        examples = [2, *tokens(EXAMPLES)]
        for _ in range(questions):
            question = tokens(QUESTION + int(random.integers(-30, 30)))
            pairs += [([*examples, *question], tokens(1)) for _ in range(ANSWERS)]
    return pairs


def measure(args):
    """Measures on the backend of this process; returns the seconds of both ways."""
    import keras_rgemma
    from keras_rgemma.benchmarks.measure import SIZES
    from keras_rgemma.evaluation.likelihoods import Likelihoods

    backbone = keras_rgemma.RGemmaBackbone(**SIZES[args.size])
    lm = keras_rgemma.RGemmaCausalLM(backbone, preprocessor=None)
    pairs = requests_of(args.subjects, args.questions, backbone.vocabulary_size)

    def seconds(shares):
        start = time.perf_counter()
        results = Likelihoods(lm, pairs, args.batch_size).run(shares)
        return time.perf_counter() - start, results

    (_, shared), (_, apart) = seconds(True), seconds(False)  # which compile
    difference = max(abs(x[0] - y[0]) for x, y in zip(shared, apart, strict=True))
    times = [[seconds(shares)[0] for shares in (True, False)] for _ in range(args.repeats)]
    return {"seconds": times, "difference": difference, "requests": len(pairs)}


def page(report):
    """Writes the page of a report, str."""
    rows = [["backend", "shared", "apart", "ratio", "largest difference"]]
    for backend, found in report["backends"].items():
        shared, apart = (statistics.median(x) for x in zip(*found["seconds"], strict=True))
        ratios = [y / x for x, y in found["seconds"]]
        rates = [f"{found['requests'] / x:.1f}" for x in (shared, apart)]
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f})"
        rows.append([backend, *rates, ratio, f"{found['difference']:.1e}"])
    machine = report["machine"]
    return (
        "# Reading shared beginnings once\n\n"
        f"On {machine['cpus']} CPUs ({machine['processor']}), keras {report['versions']['keras']}, "
        f"commit {report['versions']['commit']}. Continuations scored a second, of prompts in the "
        "form of MMLU with five examples, random weights; the largest difference is between sums "
        "of log-probabilities.\n\n"
        f"```\n{report['command']}\n```\n\n{markdown(rows)}\n"
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--size", default="110m", help="tiny or 110m")
    parser.add_argument("--subjects", type=int, default=2)
    parser.add_argument("--questions", type=int, default=8, help="of a subject")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", metavar="NAME")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args)))
        return
    names = ("size", "subjects", "questions", "batch_size", "repeats")
    options = [f"--{name.replace('_', '-')}={getattr(args, name)}" for name in names]
    found = {x: in_child(x, os.path.abspath(__file__), "--child", *options) for x in args.backends}
    report = {
        "command": reports.command(),
        "machine": host(),
        "versions": versions(),
        "backends": found,
    }
    failed = {backend: x for backend, x in found.items() if "error" in x}
    if failed:
        sys.exit(json.dumps(failed))
    publish(FOLDER, args.write, report, page(report))


if __name__ == "__main__":
    main()
