"""Compares this project's model with the same work of other packages, in one run.

    python benchmarks/against_peers.py --write peers_110m
    python benchmarks/against_peers.py --only keras-rgemma transformers --backends torch
    python benchmarks/against_peers.py --size 2b --dtype bfloat16 --folder big/2b --write peers_2b
    python benchmarks/against_peers.py --variants bfloat16 int8 int4 --only keras-rgemma

Peers are transformers (eager), DeepMind's JAX code, and KerasHub's Gemma with the same sizes on
each backend. Each runs in a process of its own (benchmarks/peers/), one after another in every
round; numbers are medians over the rounds, and a ratio is that of the same round. The ceilings of
the machine are measured in each round, too. `--write NAME` writes benchmarks/results/NAME.json and,
made from it, benchmarks/NAME.md. The last line is the same as JSON.
"""

import argparse
import json
import pathlib
import shlex
import statistics
import sys
import tempfile

import targets

from keras_rgemma.backend import BACKENDS
from keras_rgemma.benchmarks.load import architecture, write_random
from keras_rgemma.benchmarks.machine import ceilings, host, in_child, versions
from keras_rgemma.benchmarks.measure import SIZES
from keras_rgemma.config import RGemmaConfig
from keras_rgemma.files import write_json

FOLDER = pathlib.Path(__file__).parent
MEASURES = ("prefill", "decode B1", "decode B8", "train")
VARIANTS = ("bfloat16", "int8", "int4")
_SCRIPTS = {
    targets.OURS: "ours.py",
    targets.HUGGING_FACE: "huggingface.py",
    targets.DEEPMIND: "deepmind.py",
    targets.GEMMA: "kerashub_gemma.py",
}
_ONLY_BACKEND = {targets.HUGGING_FACE: "torch", targets.DEEPMIND: "jax"}


def contestants(args):
    """Lists what is measured: tuples of a package, a backend and a variant of our model."""
    found = []
    for package in args.only:
        alone = _ONLY_BACKEND.get(package)
        backends = [alone] if alone else args.backends
        found += [(package, backend, "") for backend in backends]
    if targets.OURS in args.only:
        found += [(targets.OURS, backend, x) for x in args.variants for backend in args.backends]
    return found


def measure(contestant, folder, args):
    """Measures one contestant once; returns a dict of its numbers, or one of an `error`."""
    package, backend, variant = contestant
    is_rounded = variant in ("int8", "int4")
    names = [x for x in args.measures if x != "train" or not is_rounded]
    if not names:
        return {"error": "is not measured"}
    options = ["--size", args.size, "--repeats", args.repeats, "--measures", *names]
    options += ["--dtype", "bfloat16" if variant == "bfloat16" else args.dtype]
    options += ["--quantize", variant] if is_rounded else []
    return in_child(backend, str(FOLDER / "peers" / _SCRIPTS[package]), folder, *options)


def number_of(result, number):
    """Returns a speed in a result: tokens a second, or calls a second for a first call; or None."""
    name = number.removeprefix("first ")
    if name not in result:
        return None
    return 1 / result[name]["first_s"] if name != number else result[name]["tokens_per_s"]


def bound(number, parameters, limits, dtype):
    """Returns the tokens a second that the machine's rates allow at best, or None."""
    if number == "decode B1":
        return limits["read_gb_per_s"] * 1e9 / parameters / (2 if dtype == "bfloat16" else 4)
    work = {"prefill": 2, "train": 6}.get(number)
    if work is None or dtype != "float32":
        return None
    return limits["matmul_gflops"] * 1e9 / (work * parameters)


def ratios(target, rounds, dtype):
    """Returns our speed / the reference's in each round that has both, a list of floats."""
    found = []
    for results in rounds:
        ours = results.get((targets.OURS, target.backend, target.variant), {})
        if target.reference == targets.BOUND:
            parameters = ours.get("parameters")
            other = parameters and bound(target.number, parameters, results["ceilings"], dtype)
        else:
            backend = _ONLY_BACKEND.get(target.reference, target.backend)
            other = number_of(results.get((target.reference, backend, ""), {}), target.number)
        mine = number_of(ours, target.number)
        if mine and other:
            found.append(mine / other)
    return found


def table_of_speeds(rounds, names, measures):
    """Makes the rows of a table of each contestant's numbers, medians over the rounds."""
    header = ["", "backend", *measures, *(f"first {x} s" for x in measures), "load s", "peak GB"]
    rows = [header]
    for package, backend, variant in names:
        results = [x[package, backend, variant] for x in rounds]
        errors = [x["error"] for x in results if "error" in x]
        first = [f"{package} {variant}".strip(), backend]
        if errors:
            rows.append([*first, errors[0].replace("|", "/"), *[""] * (len(header) - 3)])
            continue

        def median(values):
            values = [x for x in values if x is not None]
            return f"{statistics.median(values):.3g}" if values else "-"

        cells = [median([number_of(x, name) for x in results]) for name in measures]
        cells += [median([x.get(name, {}).get("first_s") for x in results]) for name in measures]
        cells += [median([x["load_s"] for x in results])]
        rows.append([*first, *cells, median([x["peak_bytes"] / 1e9 for x in results])])
    return rows


def table_of_targets(rounds, dtype, all_targets):
    """Makes the rows of a table of what is reached: ratios, floors and goals."""
    rows = [["backend", "number", "against", "ratio", "floor", "goal", ""]]
    for target in all_targets:
        found = ratios(target, rounds, dtype)
        if not found:
            continue
        ratio = statistics.median(found)
        met = "below the floor" if target.floor and ratio < target.floor else ""
        if target.goal and ratio >= target.goal:
            met = "goal"
        against = target.reference
        if target.variant:
            against = f"{target.variant} against float32"
        spread = f"{ratio:.2f} ({min(found):.2f}, {max(found):.2f})"
        limits = [f"{x:.2f}" if x else "-" for x in (target.floor, target.goal)]
        rows.append([target.backend, target.number, against, spread, *limits, met])
    return rows


def markdown(rows):
    """Writes the rows of a table in Markdown."""
    first, *rest = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([first, "|---" * len(rows[0]) + "|", *rest])


def page(report, tables):
    """Writes a report as a page."""
    machine, limits = report["machine"], report["ceilings"]
    libraries = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    speeds, reached = map(markdown, tables)
    return (
        f"# Beside other packages: {report['size']}, {report['dtype']}\n\n"
        f"On {machine['cpus']} CPUs ({machine['processor']}; products of float32 "
        f"{limits['matmul_gflops']:.0f} GFLOP/s, reading {limits['read_gb_per_s']:.1f} GB/s), "
        f"{libraries}. Tokens a second, medians of {report['rounds']} rounds.\n\n"
        f"```\n{report['command']}\n```\n\n{speeds}\n\n"
        "What was to be reached: our speed as a share of another's in the same round, with the "
        f"lowest and highest.\n\n{reached}\n"
    )


def run(args, folder):
    """Runs the rounds; returns a list of dicts of results, one for each round."""
    rounds = []
    for count in range(args.rounds):
        results = {"ceilings": ceilings()}
        for contestant in contestants(args):
            results[contestant] = measure(contestant, folder, args)
            print(count, *contestant, json.dumps(results[contestant]), file=sys.stderr, flush=True)
        rounds.append(results)
    return rounds


def parsed_arguments():
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=(*SIZES, "2b"), default="110m")
    parser.add_argument("--dtype", default="float32", help="float32 or bfloat16, of all")
    parser.add_argument("--only", nargs="+", choices=_SCRIPTS, default=list(_SCRIPTS))
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=[], help="of ours")
    parser.add_argument("--measures", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3, help="calls that are timed in a process")
    parser.add_argument("--folder", type=pathlib.Path, help="weights; made if it does not exist")
    parser.add_argument("--write", metavar="NAME", help="write results/NAME.json and NAME.md")
    return parser.parse_args()


def main():
    args = parsed_arguments()
    command = shlex.join(["python", "benchmarks/against_peers.py", *sys.argv[1:]])
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or pathlib.Path(temporary) / "weights"
        if not folder.exists():
            is_2b = args.size == "2b"
            sizes = architecture("rgemma_2b_en") if is_2b else RGemmaConfig(**SIZES[args.size])
            write_random(folder, sizes)
        rounds = run(args, folder)
    limits = {
        name: statistics.median(x["ceilings"][name] for x in rounds)
        for name in rounds[0]["ceilings"]
    }
    full_size = args.size == "2b"
    all_targets = targets.FULL_SIZE if full_size else targets.FLOAT32 + targets.SMALLER
    tables = (
        table_of_speeds(rounds, contestants(args), args.measures),
        table_of_targets(rounds, args.dtype, all_targets),
    )
    report = {
        "command": command,
        "machine": host(),
        "versions": versions(),
        "ceilings": limits,
        **{name: getattr(args, name) for name in ("size", "dtype", "rounds", "repeats")},
        "results": [{" ".join(key).strip(): x[key] for key in contestants(args)} for x in rounds],
    }
    for table in tables:
        print(markdown(table) + "\n")
    print(json.dumps(report))
    if args.write:
        write_json(FOLDER / "results" / f"{args.write}.json", report)
        (FOLDER / f"{args.write}.md").write_text(page(report, tables), encoding="utf-8")
    sys.exit(any("error" in x[key] for x in rounds for key in contestants(args)))


if __name__ == "__main__":
    main()
