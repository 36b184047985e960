"""Measures products on PyTorch: what `default_implementation` of `matmul` rests on.

    python benchmarks/products_torch.py
    python benchmarks/products_torch.py --rows 1 8 --write products_torch

Multiplies by the matrices of the MLPs of a model, one after another, of which there are too many
for any cache, and prints gigabytes of weights a second. "[in, out]" is how Keras stores a kernel,
"[out, in]" how an embedding lies, whose rows are outputs. `--write NAME` writes results/NAME.json
and NAME.md.
"""

import argparse
import os
import pathlib
import statistics

os.environ["KERAS_BACKEND"] = "torch"

import reports
import torch
from against_peers import markdown
from publish import publish

from keras_rgemma.benchmarks.machine import ceilings, host, repeat, versions
from keras_rgemma.ops.matmul.torch import IMPLEMENTATIONS, default_implementation

FOLDER = pathlib.Path(__file__).parent
SIZES = {"110m": (768, 2304), "2b": (2560, 7680), "tiny": (64, 96)}
LAYOUTS = {"[in, out]": False, "[out, in]": True}
DTYPES = "float32", "bfloat16"
NAMES = "linear", "rows", "onednn"


def measure(name, size, dtype, is_turned, rows, args):
    """Measures one implementation; returns the gigabytes of weights a second."""
    multiply, (inputs, outputs) = IMPLEMENTATIONS[name], SIZES[size]
    shape = (outputs, inputs) if is_turned else (inputs, outputs)
    number = torch.empty(shape, dtype=getattr(torch, dtype))
    count = max(2, int(args.gigabytes * 1e9) // (number.numel() * number.element_size()))
    kernels = [torch.rand_like(number) for _ in range(count)]
    x = torch.rand((rows, inputs), dtype=number.dtype)

    @torch.inference_mode()
    def run():
        for kernel in kernels:
            multiply(x, kernel, None, is_turned)

    seconds = statistics.median(repeat(run, 1, args.repeats))
    return sum(kernel.numel() * kernel.element_size() for kernel in kernels) / seconds / 1e9


def page(report):
    """Writes a report as a page."""
    machine, limits = report["machine"], report["ceilings"]
    rows = [["matrices of", "stored as", "weights", "rows", *NAMES]]
    for x in report["results"]:
        rates = [f"{x['gb_per_s'][name]:.1f}" for name in NAMES]
        rows.append([x["size"], x["layout"], x["dtype"], str(x["rows"]), *rates])
    return (
        "# Products on PyTorch\n\n"
        f"On {machine['cpus']} CPUs ({machine['processor']}, {limits['read_gb_per_s']:.1f} GB/s), "
        f"torch {report['versions']['torch']}, {report['threads']} threads; the default is "
        f'"{report["default"]}". Gigabytes of weights a second.\n\n'
        f"```\n{report['command']}  # {report['versions']['commit']}\n```\n\n{markdown(rows)}\n"
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", choices=SIZES, nargs="+", default=["110m", "2b"])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32, 512])
    parser.add_argument("--gigabytes", type=float, default=0.4, help="of matrices")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", metavar="NAME", help="write results/NAME.json and NAME.md")
    args = parser.parse_args()
    results = []
    for size in args.sizes:
        for dtype in DTYPES:
            for layout, is_turned in LAYOUTS.items():
                for rows in args.rows:
                    inputs = size, dtype, is_turned, rows, args
                    rates = {name: measure(name, *inputs) for name in NAMES}
                    kind = {"size": size, "dtype": dtype, "layout": layout, "rows": rows}
                    results.append({**kind, "gb_per_s": rates})
    report = {"command": reports.command()}
    report |= {"machine": host(), "versions": versions(), "ceilings": ceilings()}
    report |= {"threads": torch.get_num_threads(), "default": default_implementation()}
    report["results"] = results
    publish(FOLDER, args.write, report, page(report))


if __name__ == "__main__":
    main()
