"""Measures models of full size with random weights on this machine's GPU.

    python benchmarks/gpu.py --write gpu
    python benchmarks/gpu.py --jobs "torch ours decode rgemma_2b_en --rows 1 64" --write gpu
    python benchmarks/gpu.py --lines lines.jsonl --gpu H100 --copy 3352 --write gpu

A job is a backend and the arguments of peers/on_gpu.py, and runs in a process of its own. A share
is that of the bytes of all weights in the time of a step, to the bandwidth of a copy, which is
measured first (with --lines, that of the data sheet); the embedding, which a step reads for the
logits, is counted once. `--write NAME` writes results/NAME.json and NAME.md; `--lines` makes them
from lines that peers/on_gpu.py has printed before, so that they can be carried from a machine
without a checkout.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

from publish import publish

from keras_rgemma.benchmarks.machine import versions

FOLDER = pathlib.Path(__file__).parent
JOBS = (
    "torch ours decode rgemma_2b_en --rows 1 16 64 256",
    "torch ours decode rgemma_2b_en --rows 1 64 --compile run_eagerly",
    "torch ours decode rgemma_2b_en --rows 1 --compile jit_compile",
    "jax ours decode rgemma_2b_en --rows 1 64",
    *(
        f"{backend} {package} request rgemma_2b_en --rows 1 16 64"
        for backend in ("torch", "jax")
        for package in ("ours", "gemma")
    ),
    "torch ours context rgemma_2b_en --rows 4096 65536",
    "jax ours context rgemma_2b_en --rows 4096 65536",
)
COPY = """
import torch
x = torch.ones(2**28, device="cuda")
y = torch.empty_like(x)
y.copy_(x)
start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
start.record()
for _ in range(10):
    y.copy_(x)
end.record()
torch.cuda.synchronize()
print(torch.cuda.get_device_name())
print(2 * x.nbytes * 10 / start.elapsed_time(end) / 1e6)
"""


def copy_rate():
    """Returns the name of the GPU and the GB a second that a copy of 1 GiB reads and writes."""
    done = subprocess.run([sys.executable, "-c", COPY], capture_output=True, text=True, check=True)
    name, rate = done.stdout.strip().splitlines()
    return name, float(rate)


def run(job):
    """Runs a job; returns the list of what it has printed, dicts."""
    backend, *arguments = job.split()
    script = str(FOLDER / "peers" / "on_gpu.py")
    done = subprocess.run(
        [sys.executable, script, *arguments],
        env={**os.environ, "KERAS_BACKEND": backend, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
        capture_output=True,
        text=True,
    )
    print(done.stdout, end="", flush=True)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode:
        error = "".join(done.stderr.strip().splitlines()[-1:])[:300]
        lines.append({"backend": backend, "command": job.removeprefix(backend), "error": error})
    return lines


def cells(line, copy):
    """Writes a result as the cells of a row."""
    backend = line["backend"]
    options = [*line.get("compile", ()), *line.get("implementation", ())]
    if options:
        backend += f", {' '.join(options)}"
    row = [line.get("package", ""), backend, line.get("preset", ""), line.get("measure", "")]
    if "error" in line:
        return [*row, line.get("rows", ""), line["error"].replace("|", "/"), *[""] * 4]
    step, share = line.get("ms_per_step"), ""
    if step:
        share = f"{line['weight_bytes'] / step / 1e6 / copy:.0%}"
    rate = line.get("tokens_per_s") or line.get("prefill_tokens_per_s")
    return [
        *row,
        f"{line['rows']:,}",
        f"{step:.2f}" if step else "-",
        share,
        f"{rate:,.0f}",
        f"{line['first_s']:.1f}",
        f"{line['peak_bytes'] / 1e9:.1f}",
    ]


def markdown(report):
    """Writes a report as a page."""
    header = [
        *("", "backend", "sizes of", "measure", "rows", "ms a step", "share of bandwidth"),
        *("tokens a second", "first call s", "peak GB"),
    ]
    rows = [cells(line, report["copy_gb_per_s"]) for line in report["lines"]]
    table = "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)
    rate = f"which copies {report['copy_gb_per_s']:.0f} GB/s"
    if report["is_published"]:
        rate = f"whose memory moves {report['copy_gb_per_s']:.0f} GB/s by its data sheet"
    return f"""# On a GPU

{report["gpu"]}, {rate}; {report["software"]}. Random
weights in bfloat16, greedy. "decode" is the time of a step from two lengths of `generate` after 16
tokens, "request" that of prompts of 4,096 tokens with 64 new ones each, compilation aside, and
"context" that of a step after so many tokens (in the column of rows), whose tokens a second are
those of reading them. A share is that of the weights' bytes in the time of a step.

```
{report["command"]}
```

| {" | ".join(header)} |
|{"---|" * len(header)}
{table}

{report["notes"]}"""


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", nargs="+", default=JOBS)
    parser.add_argument("--lines", type=pathlib.Path, help="made before, one JSON a line")
    parser.add_argument("--gpu", help="its name, with --lines")
    parser.add_argument("--copy", type=float, help="published GB a second, with --lines")
    parser.add_argument("--software", help="versions, with --lines")
    parser.add_argument("--notes", type=pathlib.Path, help="a file with text for below the table")
    parser.add_argument("--write", metavar="NAME", help="write results/NAME.json and NAME.md")
    args = parser.parse_args()
    if args.lines:
        gpu, copy = args.gpu, args.copy
        lines = [json.loads(line) for line in args.lines.read_text().splitlines()]
        commands = dict.fromkeys(f"{x['backend']} {x['command']}" for x in lines)
        software = args.software
    else:
        gpu, copy = copy_rate()
        commands, lines = args.jobs, [line for job in args.jobs for line in run(job)]
        software = ", ".join(f"{name} {value}" for name, value in versions().items() if value)
    command = "\n".join(
        f"KERAS_BACKEND={backend} python benchmarks/peers/on_gpu.py {arguments}"
        for backend, _, arguments in (job.partition(" ") for job in commands)
    )
    report = {"gpu": gpu, "copy_gb_per_s": copy, "software": software}
    report["is_published"] = bool(args.lines)
    report |= {"command": command, "lines": lines}
    report["notes"] = args.notes.read_text(encoding="utf-8") if args.notes else ""
    publish(FOLDER, args.write, report, markdown(report))


if __name__ == "__main__":
    main()
