"""Runs the work of peers/lengths.py in processes of their own, and writes a page and plots of it.

What length.py and latency.py share.
"""

import json
import pathlib
import shlex
import statistics
import sys
from typing import NamedTuple

from publish import publish
from targets import GEMMA, OURS

from keras_rgemma.backend import BACKENDS
from keras_rgemma.benchmarks.machine import ceilings, host, in_child, versions
from keras_rgemma.benchmarks.plots import NAMES, Line, draw

FOLDER = pathlib.Path(__file__).resolve().parent
PACKAGES = (OURS, GEMMA)
MODELS = {OURS: "RecurrentGemma", GEMMA: "Gemma (KerasHub)"}


class Job(NamedTuple):
    """Describes what one process measures.

    Attributes:
        measure: str, of peers/lengths.py.
        package: str, of `PACKAGES`.
        backend: str.
        options: tuple of the other arguments of peers/lengths.py.
    """

    measure: str
    package: str
    backend: str
    options: tuple


def add_arguments(parser, backends, memory, rounds):
    """Adds the options that every report has.

    Args:
        parser: `argparse.ArgumentParser`.
        backends: list of str, the default.
        memory: float, gigabytes, the default.
        rounds: int, the default.
    """
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=backends)
    parser.add_argument("--only", nargs="+", choices=PACKAGES, default=list(PACKAGES))
    parser.add_argument("--rounds", type=int, default=rounds, help="of processes, in turn")
    parser.add_argument("--repeats", type=int, default=3, help="calls that are timed in a process")
    parser.add_argument(
        "--memory", type=float, default=memory, help="gigabytes at which a process ends"
    )
    parser.add_argument("--write", metavar="NAME", help="write results/NAME.json and NAME.md")
    parser.add_argument(
        "--plot", metavar="NAME", help="measure nothing: draw results/NAME.json into plots/"
    )
    parser.add_argument("--folder", type=pathlib.Path, default=FOLDER, help="of results and plots")


def run(args, jobs):
    """Measures every job in every round.

    Args:
        args: the parsed arguments.
        jobs: list of `Job`.

    Returns:
        dict, the report: how it was measured, the `points` (each with the median, lowest and
        highest seconds of all calls), what `stopped` for its memory, and the `errors`.
    """
    limits, results = [], {job: [] for job in jobs}
    for count in range(args.rounds):
        limits.append(ceilings())
        for job in jobs:
            options = (*job.options, "--repeats", args.repeats, "--memory", args.memory)
            script = str(FOLDER / "peers" / "lengths.py")
            result = in_child(job.backend, script, job.package, job.measure, *options)
            print(count, *job[:3], json.dumps(result), file=sys.stderr, flush=True)
            results[job].append(result)
    labels = {job: dict(zip(("measure", "package", "backend"), job, strict=False)) for job in jobs}
    found = [(labels[job], result) for job in jobs for result in results[job]]
    return {
        "command": command(),
        "machine": host(),
        "versions": versions(),
        "ceilings": {
            name: statistics.median(x[name] for x in limits)
            for name in ("matmul_gflops", "read_gb_per_s")
        },
        **{name: getattr(args, name) for name in ("rounds", "repeats", "memory")},
        "points": [labels[job] | point for job in jobs for point in merged(results[job])],
        "stopped": [
            label | {name: result[name] for name in ("length", "rows")}
            for label, result in found
            if result.get("stopped")
        ],
        "errors": [label | result for label, result in found if "error" in result],
    }


def command():
    """Returns the command line of this process, as one types it in the checkout."""
    script = pathlib.Path(sys.argv[0]).name
    return shlex.join(["python", f"{FOLDER.name}/{script}", *sys.argv[1:]])


def merged(results):
    """Joins what several processes found at the same lengths.

    Args:
        results: list of dicts, as peers/lengths.py prints them.

    Returns:
        A list of dicts.
    """
    points = {}
    for result in results:
        for point in result.get("results", ()):
            key = point["length"], point["rows"]
            first = points.setdefault(
                key, {**point, "seconds": [], "parameters": result["parameters"]}
            )
            first["seconds"] = first["seconds"] + point["seconds"]
            first["peak_bytes"] = max(first["peak_bytes"], point["peak_bytes"])
    return [
        point
        | {
            "seconds": statistics.median(point["seconds"]),
            "low": min(point["seconds"]),
            "high": max(point["seconds"]),
            "calls": len(point["seconds"]),
        }
        for point in points.values()
    ]


def series(report, measure):
    """Sorts the points of a measure by what made them.

    Returns:
        dict of pairs of a package and a backend to dicts of points by length and rows.
    """
    found = {}
    for point in report["points"]:
        if point["measure"] == measure:
            line = found.setdefault((point["package"], point["backend"]), {})
            line[point["length"], point["rows"]] = point
    return found


def table(report, measure, value, last=("", lambda line: "")):
    """Makes the rows of a table of numbers by length.

    Args:
        report: dict, see `run`.
        measure: str.
        value: function of a point that returns the text of its cell.
        last: pair of the name of the last column, and a function of the list of a row's points.
    """
    found = series(report, measure)
    lengths = sorted({length for line in found.values() for length, _ in line})
    stops = {
        (x["package"], x["backend"], x["length"])
        for x in report["stopped"]
        if x["measure"] == measure
    }
    rows = [["", "backend", *(f"{length:,}" for length in lengths), last[0]]]
    for (package, backend), line in found.items():
        cells = []
        for length in lengths:
            point = line.get((length, 1))
            over = f"> {report['memory']:g} GB" if (package, backend, length) in stops else "-"
            cells.append(value(point) if point else over)
        rows.append([MODELS[package], NAMES[backend], *cells, last[1](list(line.values()))])
    return rows


def sizes(report, measure):
    """Writes a sentence about the parameters of the models of a measure."""
    found = {
        MODELS[point["package"]]: point["parameters"]
        for point in report["points"]
        if point["measure"] == measure
    }
    counts = (f"{name} has {count / 1e6:.3g} million" for name, count in found.items())
    return f"{', '.join(counts)} parameters."


def lines(report, measure, pair):
    """Makes the `Line`s of a plot.

    Args:
        report: dict, see `run`.
        measure: str.
        pair: function of a point that returns its x and y.
    """
    return [
        Line(MODELS[package], backend, [pair(point) for point in line.values()], package == OURS)
        for (package, backend), line in series(report, measure).items()
    ]


def where(report):
    """Describes the machine and the libraries of a report."""
    machine, limits = report["machine"], report["ceilings"]
    libraries = ", ".join(f"{x} {y}" for x, y in report["versions"].items() if y and x != "commit")
    return (
        f"{machine['cpus']} CPUs ({machine['processor']}; products of float32 "
        f"{limits['matmul_gflops']:.0f} GFLOP/s, reading {limits['read_gb_per_s']:.1f} GB/s), "
        f"{libraries}"
    )


def head(title, report):
    """Writes the beginning of a page: where, with what and how it was measured."""
    return (
        f"# {title}\n\n"
        f"On {where(report)}. Float32, random weights, batch 1 where nothing else is said. Medians "
        f"of {report['rounds']} rounds of {report['repeats']} calls (fewer where these take more "
        "than 5 seconds). A process ended where it held more than "
        f"{report['memory']:g} GB. KerasHub's Gemma has the vocabulary, layers, widths and query "
        "heads of our model, one head of keys and values as well, and global attention.\n\n"
        f"```\n{report['command']}  # {report['versions']['commit']}\n```\n"
    )


def finish(args, report, page, has_failed):
    """Prints a report, and writes it if that is wanted; ends the process.

    Args:
        args: the parsed arguments, with `write` and `folder`.
        report: dict.
        page: str, the same as a page.
        has_failed: bool, whether a measurement has failed.
    """
    publish(args.folder, args.write, report, page)
    sys.exit(has_failed)


def plot(args, figures):
    """Draws a committed report into plots/.

    Args:
        args: the parsed arguments.
        figures: function of a report that returns a dict of names to lists of `Panel`.
    """
    path = args.folder / "results" / f"{args.plot}.json"
    for name, panels in figures(json.loads(path.read_text(encoding="utf-8"))).items():
        picture = args.folder / "plots" / f"{args.plot}_{name}.svg"
        draw(picture, panels)
        print(picture)
