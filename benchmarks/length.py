"""Measures how speed and memory depend on the length of the text, beside KerasHub's Gemma.

    python benchmarks/length.py --write length
    python benchmarks/length.py --plot length
    python benchmarks/length.py --measures decode --backends jax --only keras-rgemma

"decode" writes 64 tokens after contexts of 1,000 to 100,000 tokens, "prefill" reads a prompt and
writes one token, "train" takes a step of Adam on one row, with `gradient_checkpointing` in our
model. The first is measured at 110m, the others with a smaller model, so that all of it takes less
than half an hour on two cores; `--size` and `--lengths` choose others. `--write NAME` writes
results/NAME.json and NAME.md; `--plot NAME` draws that file into plots/. The last line is JSON.
"""

import argparse

import numpy as np
import reports
from against_peers import bound, markdown

from keras_rgemma.backend import BACKENDS
from keras_rgemma.benchmarks.plots import Panel

CONTEXTS = (1000, 3000, 10_000, 30_000, 100_000)
STEPS = (512, 2048, 4096, 8192, 32_768)
# The size and the lengths of each measure.
DEFAULTS = {"decode": ("110m", CONTEXTS), "prefill": ("8m", STEPS), "train": ("8m", STEPS)}
TITLES = {
    "decode": "Writing after a context",
    "prefill": "Reading a prompt",
    "train": "A training step",
}


def jobs(args):
    """Lists the `Job`s of the arguments."""
    found = []
    for measure in args.measures:
        size, lengths = DEFAULTS[measure]
        options = ("--size", args.size or size, "--new-tokens", args.new_tokens)
        options += ("--lengths", *(args.lengths or lengths))
        found += [
            reports.Job(measure, package, backend, options)
            for backend in args.backends
            for package in args.only
        ]
    return found


def exponent(points):
    """Fits seconds ~ length^n to points; returns n as text, "" for a single point."""
    if len(points) < 2:
        return ""
    x, y = ([np.log(point[name]) for point in points] for name in ("length", "seconds"))
    return f"{np.polyfit(x, y, 1)[0]:.2f}"


def per_token(point):
    """Returns the milliseconds of a token."""
    return 1e3 * point["seconds"] / point["tokens"]


def rate(point):
    """Returns the tokens a second."""
    return point["tokens"] / point["seconds"]


def kept(points):
    """Returns the speed at the longest context as a share of that at the shortest, as text."""
    return f"{rate(points[-1]) / rate(points[0]):.0%}"


def page(report):
    """Writes a report as a page."""
    measures = {point["measure"] for point in report["points"]}
    sections = [section(report) for measure, section in SECTIONS.items() if measure in measures]
    return "\n".join([reports.head("Length", report), *sections])


def decode_section(report):
    """Writes about the speed behind contexts."""
    point = next(x for x in report["points"] if x["measure"] == "decode")
    best = bound("decode B1", point["parameters"], report["ceilings"], "float32")
    rates = reports.table(report, "decode", lambda x: f"{rate(x):.3g}", ("last / first", kept))
    held = reports.table(report, "decode", lambda x: f"{x['held_bytes'] / 1e6:.3g}")
    # The same on every backend.
    held = list({row[0]: [row[0], *row[2:-1]] for row in held}.values())
    return (
        f"## {TITLES['decode']}\n\n{reports.sizes(report, 'decode')} Tokens a second behind a "
        "context of so many tokens, and the last as a share of the first. Reading the weights once "
        f"a token allows {best:.0f} at best. Our model has read the context (`prefill`), and then "
        "writes behind each context in turn. Gemma's cache has that length, but holds ones: its "
        "speed does not depend on their values, and reading takes the square of the length. Where "
        "a token takes long, Gemma writes fewer of them in a call, 8 at least.\n\n"
        f"{markdown(rates)}\n\nMegabytes of the state, or of the cache:\n\n{markdown(held)}\n\n"
        f"{_memory(report, 'decode')}"
    )


def prefill_section(report):
    """Writes about the time of prompts."""
    what = "Milliseconds a token until the first new token is there (`generate`)"
    return _section_of_times(report, "prefill", what)


def train_section(report):
    """Writes about the time of training steps."""
    what = (
        "Milliseconds a token of a step of Adam on one row (`train_on_batch`), of our model with "
        "`gradient_checkpointing`, of Gemma as it comes"
    )
    return _section_of_times(report, "train", what)


SECTIONS = {"decode": decode_section, "prefill": prefill_section, "train": train_section}


def _section_of_times(report, measure, what):
    times = reports.table(report, measure, lambda x: f"{per_token(x):.3g}", ("exponent", exponent))
    return (
        f"## {TITLES[measure]}\n\n{reports.sizes(report, measure)} {what}; the exponent n of "
        f"time ~ T^n is fitted to all lengths.\n\n{markdown(times)}\n\n{_memory(report, measure)}"
    )


def _memory(report, measure):
    rows = reports.table(report, measure, lambda x: f"{x['peak_bytes'] / 1e6:.0f}")
    return (
        f"Megabytes of the process at its peak, less those after its imports:\n\n{markdown(rows)}\n"
    )


def figures(report):
    """Returns the pictures of a report: a dict of names to lists of `Panel`."""

    def panel(measure, y_label, value, title=None):
        pairs = reports.lines(report, measure, lambda x: (x["length"], value(x)))
        x_label = "context, tokens" if measure == "decode" else "length T, tokens"
        return Panel(title or TITLES[measure], x_label, y_label, pairs)

    def gigabytes(point):
        return point["peak_bytes"] / 1e9

    found = {
        "decode": [
            panel("decode", "tokens a second", rate),
            panel("decode", "GB at the peak", gigabytes, "Memory of the process"),
        ],
        "time": [
            panel("prefill", "ms a token", per_token),
            panel("train", "ms a token", per_token),
        ],
    }
    return {name: panels for name, panels in found.items() if any(x.lines for x in panels)}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measures", nargs="+", choices=DEFAULTS, default=list(DEFAULTS))
    parser.add_argument("--size", help="tiny, 8m or 110m; by default of each measure its own")
    parser.add_argument("--lengths", type=int, nargs="+", help="by default of each measure its own")
    parser.add_argument("--new-tokens", type=int, default=64, help="written after a context")
    reports.add_arguments(parser, backends=list(BACKENDS), memory=12, rounds=1)
    args = parser.parse_args()
    if args.plot:
        reports.plot(args, figures)
        return
    report = reports.run(args, jobs(args))
    reports.finish(args, report, page(report), bool(report["errors"]))


if __name__ == "__main__":
    main()
