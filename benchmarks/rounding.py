"""Shows what bfloat16, int8 and int4 cost in accuracy, on each backend.

    apt-get install wordnet-base bible-kjv bible-kjv-text
    python examples/train_rgemma_tiny/prepare.py --out build/rgemma_tiny_en
    python benchmarks/rounding.py --write rounding
    python benchmarks/rounding.py --models rgemma_tiny_en --backends torch

The first two lines, once, make the held-out text: two packages of Debian, and what the embedded
preset was trained on and what it was not.

Logits of one text are compared with a model in float64 (NumPy): those of the preset, of random
weights of the size 110m, and of the first three blocks of 2B, beside DeepMind's code in float32 and
bfloat16. Bits per byte of the preset are those of the held-out text, with GPTQ and AWQ on PyTorch
alone: what they write depends on no backend. The script fails if a bound is broken: bfloat16 is no
further from float64 than DeepMind's, and int8 and int4 change bits per byte by less than
`BITS_PER_BYTE` of targets.py. Each backend has a process of its own. `--write NAME` writes
benchmarks/results/NAME.json and benchmarks/NAME.md. The last line is the same as JSON.
"""

import argparse
import importlib.metadata
import json
import pathlib
import sys
import tempfile

import reports
from against_peers import markdown
from targets import BITS_PER_BYTE

from keras_rgemma.backend import BACKENDS
from keras_rgemma.benchmarks.machine import host, in_child, versions
from keras_rgemma.benchmarks.plots import NAMES

FOLDER = pathlib.Path(__file__).resolve().parent
CHILD = FOLDER / "peers" / "rounding_errors.py"
MODELS = {
    "rgemma_tiny_en": "The embedded preset",
    "110m": "Random weights of the size 110m",
    "2b slice": "Three blocks of the size of 2B, random weights, 8192 tokens in the vocabulary",
    "tiny": "Random weights of a tiny size",
}
VARIANTS = ("float32", "bfloat16", "int8", "int4")
CALIBRATED = ("gptq", "awq")
CALIBRATES = "torch"
SOURCES = {"wordnet": "WordNet", "bible": "Bible"}
DEEPMIND = "recurrentgemma"


def run(args):
    """Measures everything; returns the report."""

    def child(backend, *arguments):
        found = in_child(backend, str(CHILD), *arguments, "--data", str(args.data))
        print(backend, *arguments, json.dumps(found), file=sys.stderr, flush=True)
        return found

    logits = {}
    for model in args.models:
        with tempfile.TemporaryDirectory() as folder:
            logits[model] = {DEEPMIND: child("jax", "truth", model, folder)}
            for backend in args.backends if "error" not in logits[model][DEEPMIND] else ():
                logits[model][backend] = child(backend, "logits", model, folder)
    bits = {}
    if not args.no_bits:
        bits = {backend: child(backend, "bits") for backend in args.backends}
        if CALIBRATES in bits:
            bits[CALIBRATES] |= child(CALIBRATES, "bits", "--variants", *CALIBRATED)
    return {
        "command": reports.command(),
        "machine": host(),
        "versions": {**versions(), DEEPMIND: importlib.metadata.version(DEEPMIND)},
        "logits": logits,
        "bits": bits,
    }


def errors(report):
    """Lists the messages of processes that failed."""
    found = [*report["bits"].values()]
    found += [result for results in report["logits"].values() for result in results.values()]
    return [result["error"] for result in found if "error" in result]


def changes(bits, variant):
    """Computes the change of bits per byte against float32: a dict of a source to a share."""
    return {source: bits[variant][source] / bits["float32"][source] - 1 for source in SOURCES}


def broken_bounds(report):
    """Lists the bounds that do not hold, a sentence each."""
    broken = []
    for model, results in report["logits"].items():
        theirs = results[DEEPMIND].get("errors", {}).get("bfloat16")
        for backend in BACKENDS:
            ours = results.get(backend, {}).get("bfloat16")
            if ours and any(ours[name] > theirs[name] for name in ("rms", "max")):
                broken.append(
                    f"{model}, {NAMES[backend]}: bfloat16 is further from float64 than DeepMind's "
                    f"({cell(ours)} beside {cell(theirs)})."
                )
    for backend, bits in report["bits"].items():
        for variant, most in BITS_PER_BYTE.items() if "error" not in bits else ():
            for source, change in changes(bits, variant).items():
                if abs(change) >= most:
                    broken.append(
                        f"{NAMES[backend]}: {variant} changes the bits per byte of "
                        f"{SOURCES[source]} by {change:+.2%}, where {most:.0%} is the bound."
                    )
    return broken


def cell(error):
    """Writes an error of logits."""
    return f"{error['rms']:.1e} / {error['max']:.1e}"


def table_of_logits(results):
    """Makes the rows of a model's errors."""
    found = {("recurrentgemma", "JAX"): results[DEEPMIND]["errors"]}
    found |= {
        ("keras-rgemma", NAMES[backend]): result
        for backend, result in results.items()
        if backend != DEEPMIND and "error" not in result
    }
    rows = [["", "backend", *VARIANTS]]
    for names, by_variant in found.items():
        cells = (cell(by_variant[x]) if x in by_variant else "-" for x in VARIANTS)
        rows.append([*names, *cells])
    return rows


def table_of_bits(report):
    """Makes the rows of bits per byte."""
    variants = (*VARIANTS, *CALIBRATED)
    rows = [["text", "backend", *variants]]
    for source, name in SOURCES.items():
        for backend, bits in report["bits"].items():
            if "error" in bits:
                continue
            cells = [f"{bits['float32'][source]:.4f}"]
            for variant in variants[1:]:
                value = bits.get(variant)
                change = f" ({changes(bits, variant)[source]:+.2%})" if value else ""
                cells.append(f"{value[source]:.4f}{change}" if value else "-")
            rows.append([name, NAMES[backend], *cells])
    return rows


def page(report):
    """Writes a report as a page."""
    libraries = ", ".join(f"{x} {y}" for x, y in report["versions"].items() if y and x != "commit")
    parts = [
        "# What rounding costs",
        f"On {report['machine']['cpus']} CPUs ({report['machine']['processor']}), {libraries}. "
        "Speed and memory of the same variants are on [the page of peers](peers_110m.md).",
        f"```\n{report['command']}  # {report['versions']['commit']}\n```",
        "## Logits",
        "Errors of the logits behind each token of one text, against the same weights in float64: "
        "root mean square / largest, both as shares of the root mean square of the logits. Random "
        "weights are numbers of bfloat16, as published ones are, so that bfloat16 rounds in the "
        "computation alone; the preset's are float16. In int8 and int4 the matrices are "
        "rounded, in int8 their inputs, too; all else is float32. DeepMind's code computes the "
        "decay of the recurrence, and one less its square, in bfloat16, where this project's "
        "computes them in float32.",
    ]
    for model, results in report["logits"].items():
        parts.append(f"### {MODELS[model]}")
        if "error" in results[DEEPMIND]:
            continue
        sizes = results[DEEPMIND]
        parts.append(
            f"{sizes['parameters'] / 1e6:.3g} million parameters, a text of {sizes['tokens']} "
            f"tokens, a window of {sizes['window']}."
        )
        parts.append(markdown(table_of_logits(results)))
    if report["bits"]:
        parts += [
            "## Held-out bits per byte of the embedded preset",
            "In brackets the change against float32. GPTQ and AWQ round to 4 bits by what goes "
            "through each layer for text of the training, on PyTorch; the gates of the recurrence "
            "and the embedding stay as they are.",
            markdown(table_of_bits(report)),
        ]
    most = " and ".join(f"by less than {y:.0%} in {x}" for x, y in BITS_PER_BYTE.items())
    failures = broken_bounds(report) + errors(report)
    parts += [
        "## Bounds",
        "Logits in bfloat16 are no further from float64 than DeepMind's in bfloat16, by the root "
        f"mean square and by the largest error. Held-out bits per byte change {most}. "
        + ("Not all of this holds:" if failures else "All of this holds."),
    ]
    parts += [f"- {sentence}" for sentence in failures]
    return "\n\n".join(parts) + "\n"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS)[:3])
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--no-bits", action="store_true", help="measure errors of logits alone")
    parser.add_argument(
        "--data",
        type=pathlib.Path,
        default=FOLDER.parent / "build" / "rgemma_tiny_en",
        help="folder of prepare.py",
    )
    parser.add_argument("--write", metavar="NAME", help="write results/NAME.json and NAME.md")
    parser.add_argument("--folder", type=pathlib.Path, default=FOLDER, help="of --write")
    args = parser.parse_args()
    needs_data = not args.no_bits or "rgemma_tiny_en" in args.models
    if needs_data and not (args.data / "stats.json").exists():
        parser.error(
            f"{args.data} holds no held-out text. Make it with the first two lines of the help."
        )
    report = run(args)
    has_failed = bool(errors(report) or broken_bounds(report))
    reports.finish(args, report, page(report), has_failed)


if __name__ == "__main__":
    main()
