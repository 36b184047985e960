"""Measures each backend in processes of their own and prints a table: the work of `bench`."""

import argparse
import json
from collections.abc import Mapping
from typing import Any

from keras_rgemma.benchmarks.machine import ceilings, host, in_child, versions


def run(args: argparse.Namespace) -> None:
    """Measures, prints a line for each measurement and, at the end, the report as JSON.

    Args:
        args: the options of `benchmarks.arguments`, parsed.

    Raises:
        ChildProcessError: a measurement failed; the others are in the report.
    """
    machine, limits = host(), ceilings()
    print(f"machine {machine}\nversions {versions()}")
    print(f"ceilings {limits['matmul_gflops']:.0f} GFLOP/s, {limits['read_gb_per_s']:.1f} GB/s")
    print(f"size {args.size}, {args.dtype}, {args.warmup} warm-up, {args.repeats} repeats\n")
    header = f"{'backend':<11}{'what':<10}{'tokens/s':>10}{'low':>9}{'high':>9}{'of bound':>9}"
    print(header + f"{'peak MB':>9}")
    results = []
    for what in args.measures:
        for backend in args.backends:
            results.append({"backend": backend, "what": what, **measure(backend, what, args)})
            print(line(results[-1], limits, args.dtype), flush=True)
    report = {"machine": machine, "versions": versions(), "ceilings": limits, "results": results}
    print("\n" + json.dumps(report))
    failed = [f"{x['what']} on {x['backend']}" for x in results if "error" in x]
    if failed:
        raise ChildProcessError(
            f"These measurements failed: {', '.join(failed)}. The table above says why; leave them "
            "out with --measures and --backends."
        )


def measure(backend: str, what: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measures one number in a process of its own.

    Args:
        backend: str.
        what: str of `arguments.MEASURES`.
        args: the options of `benchmarks.arguments`, parsed.

    Returns:
        The dict of the result, or a dict with an `error`.
    """
    options = [f"--{name}={getattr(args, name)}" for name in ("size", "dtype", "warmup", "repeats")]
    return in_child(backend, "keras_rgemma.benchmarks.measure", what, *options)


def line(result: Mapping[str, Any], limits: Mapping[str, float], dtype: str) -> str:
    """Writes the line of a result in the table."""
    first = f"{result['backend']:<11}{result['what']:<10}"
    if "error" in result:
        return f"{first} {result['error']}"
    best = bound(result, limits, dtype)
    share = f"{result['median'] / best:.0%}" if best else "-"
    rates = "".join(
        f"{result[key]:>{width}.1f}" for key, width in (("median", 10), ("low", 9), ("high", 9))
    )
    text = f"{first}{rates}{share:>9}{result['peak_memory_bytes'] / 1e6:>9.0f}"
    if result["what"] == "stream":
        first_ms, later_ms = result["first_piece_ms"], result["between_pieces_ms"]
        text += f"  first piece after {first_ms:.1f} ms, then one every {later_ms:.1f} ms"
    return text


def bound(result: Mapping[str, Any], limits: Mapping[str, float], dtype: str) -> float | None:
    """Computes the highest rate that the ceilings of the host allow.

    Args:
        result: dict of a measurement.
        limits: dict, as of `machine.ceilings`.
        dtype: str, the dtype of the weights.

    Returns:
        Tokens a second, float, or None where the ceilings do not bound this measurement.
    """
    if not result["on_host"]:
        return None
    parameters = result["parameters"]
    if result["what"] == "decode B1":
        size = 4 if dtype == "float32" else 2
        return limits["read_gb_per_s"] * 1e9 / (size * parameters)
    factor = {"prefill": 2, "train": 6}.get(result["what"])
    if factor is None or dtype != "float32":
        return None
    return limits["matmul_gflops"] * 1e9 / (factor * parameters)
