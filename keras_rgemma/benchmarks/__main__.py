"""Tokens a second and peak memory of prefill, decode, streams and training, on each backend.

    python -m keras_rgemma.benchmarks
    python -m keras_rgemma.benchmarks --backends jax torch --dtype bfloat16

Weights are random. Every line is measured in a process of its own. The last line is the same as
JSON. The ceilings of the host are measured in the same run; prefill is at best
`matmul / (2 * parameters)`, embeddings aside, decode of one row `read / bytes of weights`, a
training step `matmul / (6 * parameters)`.
"""

import argparse
import json
import os
import platform
import sys

from keras_rgemma.backend import BACKENDS
from keras_rgemma.benchmarks.machine import ceilings, in_child, versions

MEASURES = ("prefill", "decode B1", "decode B8", "stream", "train")


def measure(backend, what, args):
    """The result of one measurement, or a dict of its `error`."""
    options = [f"--{name}={getattr(args, name)}" for name in ("size", "dtype", "warmup", "repeats")]
    return in_child(backend, "keras_rgemma.benchmarks.measure", what, *options)


def bound(what, result, limits, dtype):
    """The rate that the ceilings of the host allow, where they bound it."""
    if not result["on_host"]:
        return None
    parameters = result["parameters"]
    if what == "decode B1":
        size = 4 if dtype == "float32" else 2
        return limits["read_gb_per_s"] * 1e9 / (size * parameters)
    factor = {"prefill": 2, "train": 6}.get(what)
    if factor is None or dtype != "float32":
        return None
    return limits["matmul_gflops"] * 1e9 / (factor * parameters)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--measures", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--size", default="110m", help="110m or tiny")
    parser.add_argument("--dtype", default="float32", help="of weights and computation")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()

    machine = {"processor": platform.processor() or platform.machine(), "cpus": os.cpu_count()}
    limits = ceilings()
    print(f"machine {machine}\nversions {versions()}")
    print(f"ceilings {limits['matmul_gflops']:.0f} GFLOP/s, {limits['read_gb_per_s']:.1f} GB/s")
    print(f"size {args.size}, {args.dtype}, {args.warmup} warm-up, {args.repeats} repeats\n")
    header = f"{'backend':<11}{'what':<10}{'tokens/s':>10}{'low':>9}{'high':>9}{'of bound':>9}"
    print(header + f"{'peak MB':>9}")
    results = []
    for what in args.measures:
        for backend in args.backends:
            result = measure(backend, what, args)
            results.append({"backend": backend, "what": what, **result})
            if "error" in result:
                print(f"{backend:<11}{what:<10} {result['error']}", flush=True)
                continue
            best = bound(what, result, limits, args.dtype)
            share = f"{result['median'] / best:.0%}" if best else "-"
            rates = "".join(
                f"{result[key]:>{w}.1f}" for key, w in (("median", 10), ("low", 9), ("high", 9))
            )
            peak = result["peak_memory_bytes"] / 1e6
            line = f"{backend:<11}{what:<10}{rates}{share:>9}{peak:>9.0f}"
            if what == "stream":
                first, later = result["first_piece_ms"], result["between_pieces_ms"]
                line += f"  first piece after {first:.1f} ms, then one every {later:.1f} ms"
            print(line, flush=True)
    report = {"machine": machine, "versions": versions(), "ceilings": limits, "results": results}
    print("\n" + json.dumps(report))
    sys.exit(any("error" in result for result in results))


if __name__ == "__main__":
    main()
