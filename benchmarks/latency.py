"""Repeats two experiments of RecurrentGemma's authors, scaled to this machine.

    python benchmarks/latency.py --write latency
    python benchmarks/latency.py --plot latency
    python benchmarks/latency.py --measures latency --scale 1 --backends jax torch

"latency" is that of the model card of RecurrentGemma 9B: the seconds to read a prompt of 4,096
tokens and to sample 128 to 16,384 more, at batch 1. "throughput" is that of figure 1a of the report
(arXiv 2404.07839): the most tokens a second, of any batch that the memory holds, after a prompt of
2,048 tokens, by the number of tokens sampled. Ours stands beside KerasHub's Gemma of its size.
`--scale` multiplies all lengths; by default they are an eighth in the first experiment. `--write
NAME` writes results/NAME.json and NAME.md; `--plot NAME` draws that file into plots/. The last line
is JSON.
"""

import argparse

import reports
from against_peers import markdown
from targets import GEMMA, OURS

from keras_rgemma.benchmarks.plots import NAMES, Panel

# Of the prompt, and of the tokens sampled; and by how much they are scaled.
LENGTHS = {
    "latency": (4096, (128, 256, 512, 1024, 2048, 4096, 8192, 16_384)),
    "throughput": (2048, (128, 512, 2048, 8192)),
}
SCALES = {"latency": 1 / 8, "throughput": 1.0}


def scaled(length, scale):
    """Scales a number of tokens, of which there is at least one."""
    return max(1, round(length * scale))


def jobs(args):
    """Lists the `Job`s of the arguments."""
    found = []
    for measure in args.measures:
        scale = args.scale or SCALES[measure]
        prompt, lengths = LENGTHS[measure]
        lengths = sorted({scaled(length, scale) for length in lengths})
        options = ("--size", args.size, "--prompt", scaled(prompt, scale))
        if measure == "latency":
            variants = [("--lengths", *lengths)]
        else:  # a process for each, which ends where no larger batch fits
            options += ("--new-tokens", args.new_tokens, "--rows", *args.rows)
            variants = [("--lengths", length) for length in lengths]
        found += [
            reports.Job(measure, package, backend, (*options, *variant))
            for backend in args.backends
            for variant in variants
            for package in args.only
        ]
    return found


def rate(point):
    """Returns the tokens a second."""
    return point["tokens"] / point["seconds"]


def rows_of(point):
    """Returns the number of rows as text."""
    return f"{point['rows']} rows" if point["rows"] > 1 else "1 row"


def best(points):
    """Returns the points, dicts, with the highest rate of each length, as a dict by length."""
    found = {}
    for point in points:
        length = point["length"]
        found[length] = max(found.get(length, point), point, key=rate)
    return found


def rows_of_latency(report):
    """Makes the rows of a table of seconds, and of the time that our model saves."""
    rows = reports.table(report, "latency", lambda x: f"{x['seconds']:.3g}")
    found = reports.series(report, "latency")
    for backend in sorted({backend for _, backend in found}):
        ours, theirs = (found.get((package, backend), {}) for package in (OURS, GEMMA))
        keys = sorted({key for line in found.values() for key in line})
        saved = [
            f"{1 - ours[key]['seconds'] / theirs[key]['seconds']:.0%}"
            if key in ours and key in theirs
            else "-"
            for key in keys
        ]
        rows.append(["time saved", NAMES[backend], *saved, ""])
    return [row[:-1] for row in rows]


def rows_of_throughput(report):
    """Makes the rows of a table of the best rates, with their batches."""
    found = reports.series(report, "throughput")
    lengths = sorted({length for line in found.values() for length, _ in line})
    rows = [["", "backend", *(f"{length:,}" for length in lengths)]]
    for (package, backend), line in found.items():
        highest = best(line.values())
        cells = [
            f"{rate(highest[x]):.3g} ({highest[x]['rows']})" if x in highest else "-"
            for x in lengths
        ]
        rows.append([reports.MODELS[package], NAMES[backend], *cells])
    return rows


def page(report):
    """Writes a report as a page."""
    measures = {point["measure"] for point in report["points"]}
    sections = [
        section(report, **report["scales"][measure])
        for measure, section in SECTIONS.items()
        if measure in measures
    ]
    return "\n".join([reports.head("Latency and throughput", report), *sections])


def latency_section(report, scale, prompt):
    """Writes about the time of one text."""
    return (
        f"## Latency\n\n{reports.sizes(report, 'latency')} Seconds to read a prompt of "
        f"{prompt:,} tokens and to sample so many more, at batch 1, compilation aside. That is the "
        f"experiment of the model card of RecurrentGemma 9B with its lengths times {scale:g}, and "
        f"with a small model on the machine above.\n\n{markdown(rows_of_latency(report))}\n"
    )


def throughput_section(report, scale, prompt):
    """Writes about the speed of batches."""
    return (
        f"## Throughput\n\n{reports.sizes(report, 'throughput')} The most tokens a second of all "
        f"rows together, and at how many rows, of {', '.join(map(str, report['rows']))} that were "
        f"tried in turn as far as {report['memory']:g} GB allow. The prompt has {prompt:,} tokens; "
        "a column says how many are sampled after it. That is the experiment of figure 1a of the "
        f"report (arXiv 2404.07839) with its lengths times {scale:g}, and with a small model. The "
        f"last {report['new_tokens']} tokens of a row are timed and stand for all: our state has "
        "one size, and the cache of KerasHub has that of the whole text from the first token on. "
        "Gemma's holds ones instead of a text.\n\n"
        f"{markdown(rows_of_throughput(report))}\n"
    )


SECTIONS = {"latency": latency_section, "throughput": throughput_section}


def figures(report):
    """Returns the pictures of a report: a dict of names to lists of `Panel`."""
    seconds = reports.lines(report, "latency", lambda x: (x["length"], x["seconds"]))
    rates, notes = [], {}
    for line, points in zip(
        reports.lines(report, "throughput", lambda x: (x["length"], rate(x))),
        reports.series(report, "throughput").values(),
        strict=True,
    ):
        highest = best(points.values())
        pairs = {(length, rate(point)): rows_of(point) for length, point in highest.items()}
        rates.append(line._replace(points=sorted(pairs)))
        notes |= pairs
    title = "Reading a prompt and sampling, batch 1"
    panels = [
        Panel(title, "tokens sampled", "seconds", seconds),
        Panel("The best batch in memory", "tokens sampled", "tokens a second", rates, notes),
    ]
    return {"sampling": [panel for panel in panels if panel.lines]}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measures", nargs="+", choices=LENGTHS, default=list(LENGTHS))
    parser.add_argument("--size", default="110m", help="tiny, 8m or 110m")
    parser.add_argument("--scale", type=float, help="of all lengths; by default 1/8 and 1")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16, 64], help="tried in turn")
    parser.add_argument("--new-tokens", type=int, default=16, help="timed for the throughput")
    reports.add_arguments(parser, backends=["jax"], memory=12, rounds=1)
    args = parser.parse_args()
    if args.plot:
        reports.plot(args, figures)
        return
    report = reports.run(args, jobs(args))
    report |= {name: getattr(args, name) for name in ("size", "rows", "new_tokens")}
    report["scales"] = {
        measure: {
            "scale": args.scale or SCALES[measure],
            "prompt": scaled(LENGTHS[measure][0], args.scale or SCALES[measure]),
        }
        for measure in args.measures
    }
    reports.finish(args, report, page(report), bool(report["errors"]))


if __name__ == "__main__":
    main()
