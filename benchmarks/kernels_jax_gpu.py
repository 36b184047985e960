"""Measures the linear recurrence of JAX on this machine's GPU.

    python benchmarks/kernels_jax_gpu.py --write kernels_jax_gpu

Told are milliseconds forwards, and of the gradient alone, and the share of the bandwidth of a copy:
the bytes of each array read or written once, in the time, to the copy's rate. `--write NAME` writes
benchmarks/results/NAME.json and benchmarks/NAME.md.
"""

import argparse
import functools
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
from kernel_sizes import SIZES, floor, table
from publish import publish
from reports import command

from keras_rgemma.benchmarks.machine import versions
from keras_rgemma.ops.linear_recurrence import linear_recurrence

FOLDER = pathlib.Path(__file__).parent
CALLS = 10  # in a row, so that Python's time for one of them hides behind the others


def seconds_of(function, *arrays, repeats=7):
    """Measures the median of the seconds of a call."""
    function = jax.jit(function)
    jax.block_until_ready(function(*arrays))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(CALLS):
            result = function(*arrays)
        jax.block_until_ready(result)
        times.append((time.perf_counter() - start) / CALLS)
    return statistics.median(times)


def copy_bandwidth():
    """Measures the bytes a second that a copy of 1 GiB reads and writes."""
    source = jnp.ones(2**28, jnp.float32)
    return 2 * source.nbytes / seconds_of(lambda x: -x, source)


def measured(name, size, dtype, bandwidth):
    """Measures an implementation; returns a dict."""
    batch, length, width = SIZES[size]
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (batch, length, width)).astype(dtype)
    a = jax.random.uniform(keys[1], x.shape, minval=0.9, maxval=0.9999).astype(dtype)
    state = jnp.zeros((batch, width))
    weight = jax.random.normal(keys[2], x.shape)
    run = functools.partial(linear_recurrence, implementation=name)

    def both(*arrays):
        outputs, back = jax.vjp(run, *arrays)
        return outputs, back((weight, state))

    result = {"implementation": name, "size": size, "dtype": dtype}
    seconds = {"forward": seconds_of(run, x, a, state)}
    seconds["gradient"] = seconds_of(both, x, a, state) - seconds["forward"]
    for direction, value in seconds.items():
        moved = floor(direction, dtype, length) * x.size
        result |= {f"{direction}_ms": 1e3 * value}
        result |= {f"{direction}_share": moved / value / bandwidth}
    print(result, flush=True)
    return result


def markdown(report):
    """Writes a report as a page."""
    lines = [
        "# The linear recurrence of JAX on a GPU",
        "",
        f"Measured on {report['gpu']} with JAX {report['versions']['jax']}. A kernel of XLA that "
        f"reads an array and writes another moves {report['copy_gb_per_s']:.0f} GB/s. A share is "
        "that of each array read or written once, in the time, to this rate.",
        "",
        f"```\n{report['command']}\n```",
        "",
        *table(report["measured"]),
    ]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", choices=SIZES, nargs="+", default=list(SIZES))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--names", nargs="+", default=["triton", "associative"])
    parser.add_argument("--write", metavar="NAME", help="write results/NAME.json and NAME.md")
    args = parser.parse_args()
    bandwidth = copy_bandwidth()
    report = {
        "command": command(),
        "versions": versions(),
        "gpu": jax.devices()[0].device_kind,
        "copy_gb_per_s": bandwidth / 1e9,
        "measured": [
            measured(name, size, dtype, bandwidth)
            for name in args.names
            for size in args.sizes
            for dtype in args.dtypes
        ],
    }
    publish(FOLDER, args.write, report, markdown(report))


if __name__ == "__main__":
    main()
