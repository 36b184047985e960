"""Compares the speed of two checkouts of the project in one run, on each backend.

    python benchmarks/before_after.py BEFORE_FOLDER
    python benchmarks/before_after.py BEFORE_FOLDER --backends torch --measures "decode B1" stream
    python benchmarks/before_after.py . --size tiny --rounds 1 --repeats 1

Every measure runs in a process of its own, before and after in turn, through the public API alone
(benchmarks/measures.py). A ratio is before / after in one round, so 2 means that the new checkout
takes half of the time; the table has the median over the rounds, with the lowest and the highest.
`--write NAME` writes benchmarks/results/NAME.json and, made from it, benchmarks/NAME.md; rows of
other backends and measures that the file has from an earlier run stay, so a long comparison can be
made in several runs. The last line is the same as JSON.
"""

import argparse
import json
import pathlib
import shlex
import statistics
import sys

import measures

from keras_rgemma.backend import BACKENDS
from keras_rgemma.benchmarks.machine import ceilings, commit_of, host, in_child, versions
from keras_rgemma.benchmarks.measure import SIZES, WORK
from keras_rgemma.files import write_json

ROOT = pathlib.Path(__file__).resolve().parents[1]
COLUMNS = "{:<11}{:<12}{:<15}{:>10}{:>10}{:>9}  {}"


def measure(folder, backend, name, args):
    """Runs one measure on one checkout.

    Args:
        folder: path of the checkout.
        backend: str.
        name: str, a key of `measures.MEASURES`.
        args: the parsed arguments.

    Returns:
        The dict of its numbers, or one of an `error`.
    """
    _, new_tokens, rows, length = WORK[args.size]
    result = in_child(
        backend,
        str(ROOT / "benchmarks" / "measures.py"),
        name,
        *("--sizes", json.dumps(SIZES[args.size])),
        *("--work", new_tokens, rows, length),
        *("--preset-tokens", args.preset_tokens, "--requests", args.requests),
        *("--repeats", args.repeats),
        environment={"PYTHONPATH": str(folder)},
    )
    if "error" in result:
        return result
    if folder not in pathlib.Path(result["file"]).parents:
        return {"error": f"imported {result['file']}, which is not in {folder}"}
    return result["numbers"]


def compare(backend, name, args):
    """Runs one measure on both checkouts in turn.

    Args:
        backend: str.
        name: str, a key of `measures.MEASURES`.
        args: the parsed arguments.

    Returns:
        A list of a dict for each number of the measure, or of one dict with an `error`.
    """
    rounds = []
    for _ in range(args.rounds):
        for label, folder in (("before", args.before), ("after", args.after)):
            numbers = measure(folder, backend, name, args)
            if "error" in numbers:
                error = f"{label}: {numbers['error']}"
                return [{"backend": backend, "measure": name, "error": error}]
            rounds.append(numbers)
    return [
        {
            "backend": backend,
            "measure": name,
            "number": number,
            "before": [numbers[number] for numbers in rounds[::2]],
            "after": [numbers[number] for numbers in rounds[1::2]],
        }
        for number in rounds[0]
    ]


def cells(result):
    """Makes the cells of a table from a result: before, after, ratio, and its range."""
    before, after = result["before"], result["after"]
    ratios = [x / y for x, y in zip(before, after, strict=True) if y]
    if not ratios:  # nothing is compiled on PyTorch
        return [*(f"{statistics.median(values):.4g}" for values in (before, after)), "-", ""]
    return [
        *(f"{statistics.median(values):.4g}" for values in (before, after)),
        f"{statistics.median(ratios):.2f}",
        f"({min(ratios):.2f}, {max(ratios):.2f})",
    ]


def markdown(report):
    """Writes a report as a page with a table."""
    machine, limits = report["machine"], report["ceilings"]
    libraries = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    lines = [
        "# Before and after",
        "",
        f"The checkout of commit {report['before']} against the commits below, on "
        f"{machine['cpus']} CPUs ({machine['processor']}, {limits['matmul_gflops']:.0f} GFLOP/s, "
        f"{limits['read_gb_per_s']:.1f} GB/s), {libraries}. Sizes {report['size']}, float32. "
        "Medians over the rounds; a ratio is before / after, with its lowest and highest.",
        "",
        "```",
        *(f"{run['command']}  # {run['after']}" for run in report["runs"]),
        *("```", ""),
        "| backend | measure | | before | after | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for result in report["results"]:
        first = f"| {result['backend']} | {result['measure']} | "
        if "error" in result:
            lines.append(f"{first}{result['error'].replace('|', '/')} | | | |")
            continue
        before, after, ratio, spread = cells(result)
        lines.append(f"{first}{result['number']} | {before} | {after} | {ratio} {spread} |")
    return "\n".join(lines) + "\n"


def with_earlier_runs(report, path):
    """Adds to a report the rows that a file has of other backends and measures.

    Args:
        report: dict, see `main`.
        path: path of an earlier report; it need not exist.

    Returns:
        A dict of the same form.

    Raises:
        ValueError: if the earlier report compares another checkout, or other sizes or versions.
    """
    if not path.exists():
        return report
    earlier = json.loads(path.read_text(encoding="utf-8"))
    for key in ("before", "size", "machine", "versions"):
        if earlier[key] != report[key]:
            raise ValueError(
                f"{path} has {key} {earlier[key]!r}, and this run {report[key]!r}: their rows are "
                "no one table. Choose another name for --write, or remove that file."
            )
    again = {(result["backend"], result["measure"]) for result in report["results"]}
    kept = [
        result
        for result in earlier["results"]
        if (result["backend"], result["measure"]) not in again
    ]
    runs = [run for run in earlier["runs"] if run not in report["runs"]]
    return {
        **report,
        "runs": [*runs, *report["runs"]],
        "results": [*kept, *report["results"]],
    }


def write(report, name, folder):
    """Writes the report as `results/NAME.json`, and as `NAME.md` beside that folder."""
    (folder / "results").mkdir(parents=True, exist_ok=True)
    path = folder / "results" / f"{name}.json"
    report = with_earlier_runs(report, path)
    write_json(path, report)
    (folder / f"{name}.md").write_text(markdown(report), encoding="utf-8")


def absolute(path):
    """Makes a path absolute, as the processes that measure need it."""
    return pathlib.Path(path).resolve()


def parsed_arguments():
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=absolute, metavar="BEFORE_FOLDER", help="the old checkout")
    parser.add_argument("--after", type=absolute, default=ROOT, help="the new one (this checkout)")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    names = list(measures.MEASURES)
    parser.add_argument("--measures", nargs="+", choices=names, default=names)
    parser.add_argument("--size", choices=SIZES, default="110m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3, help="calls that are timed in a process")
    parser.add_argument("--preset-tokens", type=int, default=100, help="new tokens of the preset")
    parser.add_argument("--requests", type=int, default=200, help="of the mix of `compiles`")
    parser.add_argument("--write", metavar="NAME", help="write results/NAME.json and NAME.md")
    parser.add_argument("--folder", type=absolute, default=ROOT / "benchmarks", help="of --write")
    args = parser.parse_args()
    for checkout in (args.before, args.after):
        if not (checkout / "keras_rgemma" / "__init__.py").exists():
            parser.error(f"{checkout} is no checkout of the project: it has no keras_rgemma/")
    return args


def main():
    args = parsed_arguments()
    report = {
        "runs": [{"command": shlex.join(["python", *sys.argv]), "after": commit_of(args.after)}],
        "before": commit_of(args.before),
        "machine": host(),
        "versions": {name: v for name, v in versions().items() if name != "commit"},
        "ceilings": ceilings(),
        "size": args.size,
        "results": [],
    }
    for key in ("runs", "before", "machine", "versions", "ceilings"):
        print(key, report[key])
    if args.write:  # refuses before hours of measuring
        write(report, args.write, args.folder)
    names = ("backend", "measure", "", "before", "after", "ratio", "(low, high)")
    print("\n" + COLUMNS.format(*names))
    for name in args.measures:
        for backend in args.backends:
            for result in compare(backend, name, args):
                report["results"].append(result)
                first = (backend, name)
                if "error" in result:
                    print("{:<11}{:<12}".format(*first) + result["error"], flush=True)
                else:
                    print(COLUMNS.format(*first, result["number"], *cells(result)), flush=True)
            if args.write:  # what is there, should a later measure be stopped
                write(report, args.write, args.folder)
    print("\n" + json.dumps(report))
    sys.exit(any("error" in result for result in report["results"]))


if __name__ == "__main__":
    main()
