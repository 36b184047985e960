"""Plans each task for each device, and writes a table of what fits where.

    python benchmarks/plans.py --write plans
    python benchmarks/plans.py --models 2b --devices v5e-1 --tasks lora --write plans

Runs `keras_rgemma.plan`, one program at a time, without a device. A row that benchmarks/results
holds already is not compiled again, so a run that was broken off goes on; `--again` compiles all.
Of each row the largest length and batch that fit are looked for, unless `--no-search` is given.
"""

import argparse
import json
import pathlib
import sys

from publish import publish
from reports import command

import keras_rgemma
from keras_rgemma.benchmarks.machine import host, versions
from keras_rgemma.distribution.devices import DEVICES
from keras_rgemma.files import read_json

FOLDER = pathlib.Path(__file__).resolve().parent
MODELS = {"2b": "rgemma_2b_en", "9b": "rgemma_9b_en"}
TARGETS = ("v5e-1", "v5e-8", "T4", "2xT4", "A100", "H100")
# Rows and their tokens, by task and how many chips there are.
SIZES = {
    "generate": {1: (1, 2048), 8: (8, 2048)},
    "lora": {1: (1, 8192), 8: (8, 8192)},
    "qlora": {1: (1, 8192), 8: (8, 8192)},
    "train": {1: (1, 4096), 8: (8, 4096)},
}
KEYS = ("model", "device", "task", "batch", "length")
NAMES = [
    "model",
    "device",
    "task",
    "rows x tokens",
    "mesh",
    "weights GB",
    "optimizer GB",
    "state GB",
    "others GB",
    "total GB",
    "fits",
    "longest rows",
    "most rows",
    "at best tokens/s",
    "compiled s",
    "host GB",
]


def measure(model, device, task, search):
    """Plans one row of the table; returns a dict."""
    batch, length = SIZES[task][8 if DEVICES[device].chips == 8 else 1]
    if DEVICES[device].chips == 2:
        batch = 2
    row = {"model": model, "device": device, "task": task, "batch": batch, "length": length}
    try:
        plan = keras_rgemma.plan(
            MODELS[model], device, task, length=length, batch=batch, search=search
        )
    except (RuntimeError, ValueError) as error:
        return {**row, "error": str(error)[-300:]}
    return {**row, "searched": search, **plan.to_dict()}


def cells(row):
    """Writes the cells of a row."""
    first = [row["model"], row["device"], row["task"], f"{row['batch']} x {row['length']}"]
    if "error" in row:
        return [*first, *[""] * 6, f"failed: {row['error'].splitlines()[-1][:80]}", *[""] * 5]
    most = max(row["programs"], key=lambda x: x["total_bytes"] or 0)
    names = ("weight", "optimizer", "state", "temporary", "total")
    sizes = [most[f"{name}_bytes"] for name in names]
    mesh = "x".join(map(str, row["settings"]["mesh"]))
    mesh += " sharded" if row["settings"]["fully_sharded"] else ""
    rates = [
        f"{x['name']} {x['tokens_per_second']:,.0f}" if x["tokens_per_second"] else ""
        for x in row["programs"]
    ]
    sure = "" if row["is_verified"] else "?"
    is_generating = row["task"] == "generate"
    longest = "any" if is_generating else f"{row['largest_length'] or ''}{sure}"
    rows = f"{row['largest_batch'] or ''}{sure if is_generating else '?'}"
    if not row["searched"]:
        longest = rows = ""
    seconds = sum((x["trace_s"] or 0) + (x["compile_s"] or 0) for x in row["programs"])
    return [
        *first,
        mesh,
        *("" if x is None else f"{x / 1e9:.2f}" for x in sizes),
        "yes" if row["fits"] else "no",
        longest,
        rows,
        ", ".join(filter(None, rates)),
        f"{seconds:.0f}",
        f"{max(x['host_bytes'] for x in row['programs']) / 1e9:.1f}",
    ]


def page(report):
    """Writes the report as a page."""
    order = {name: i for i, name in enumerate((*MODELS, *DEVICES, *SIZES))}
    rows = sorted(report["results"], key=lambda x: [order[x[name]] for name in KEYS[:3]])
    lines = [
        "# What fits where",
        "",
        "By the devices' own compilers, on a machine without them; nothing of it has run there. "
        "Bytes are those of one chip, of the largest program of the task. Training recomputes "
        "layers, with AdamW; LoRA has rank 8, QLoRA rounds to int4. `?` marks a size that follows "
        "from a line through two programs and was not compiled. The bound on tokens a second is "
        "what the published rates of all chips allow; real programs stay below it.",
        "",
        *(f"```\n{run}\n```" for run in report["runs"][-1:]),
        "",
        f"jax {report['versions'].get('jax')}, on {report['cpus']} CPUs.",
        "",
        f"| {' | '.join(NAMES)} |",
        f"|{'---|' * len(NAMES)}",
        *(f"| {' | '.join(map(str, cells(row)))} |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", choices=MODELS, nargs="+", default=list(MODELS))
    parser.add_argument("--devices", choices=DEVICES, nargs="+", default=list(TARGETS))
    parser.add_argument("--tasks", choices=SIZES, nargs="+", default=list(SIZES))
    parser.add_argument("--no-search", action="store_true", help="compile one size alone")
    parser.add_argument("--again", action="store_true", help="compile what was compiled before")
    parser.add_argument("--write", metavar="NAME", help="write results/NAME.json and NAME.md")
    args = parser.parse_args()
    path = FOLDER / "results" / f"{args.write}.json"
    before = read_json(path) if args.write and path.exists() else {"results": [], "runs": []}
    results = {tuple(x[name] for name in KEYS[:3]): x for x in before["results"]}
    report = {"runs": [*before["runs"], command()], **host(), "versions": versions()}
    for key in [(m, d, t) for m in args.models for d in args.devices for t in args.tasks]:
        known = results.get(key)
        is_known = known and "error" not in known and (known["searched"] or args.no_search)
        if is_known and not args.again:
            continue
        results[key] = measure(*key, not args.no_search)
        print(json.dumps(results[key]), file=sys.stderr, flush=True)
        report["results"] = list(results.values())
        publish(FOLDER, args.write, report, page(report))


if __name__ == "__main__":
    main()
