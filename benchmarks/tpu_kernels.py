"""Compiles the linear recurrence for TPUs, without a TPU: what it moves, and what it needs.

    pip install libtpu
    python benchmarks/tpu_kernels.py --chips v5e --lengths 2048 --rows 1
    python benchmarks/tpu_kernels.py --write tpu_kernels

Compares the implementations "pallas" and, in float32, "associative" of the operation. The floor is
one read of x and a and one write of h; backwards one read of the gradient of h, of a and of h, and
one write of the gradients of x and a. XLA counts the bytes of its own operations; those of a
kernel it takes from the kernel, which counts the blocks that it moves. `--write NAME` writes
benchmarks/results/NAME.json and benchmarks/NAME.md.
"""

import argparse
import functools
import itertools
import json
import math
import pathlib
import shlex
import shutil
import subprocess
import sys

import tpu  # isort: skip, it sets what JAX reads when it is imported

import jax
import jax.numpy as jnp
from publish import publish

from keras_rgemma.benchmarks.machine import host, versions
from keras_rgemma.ops.linear_recurrence.jax import IMPLEMENTATIONS
from keras_rgemma.ops.linear_recurrence.jax.pallas.tpu import GROUP, LANES, STEPS, Blocks

HERE = pathlib.Path(__file__).resolve().parent
WIDTHS = (768, 2560, 4096)
DTYPES = ("float32", "bfloat16")
DIRECTIONS = ("forward", "backward")
HBM_GB_PER_S = {"v5e": 819, "v6e": 1640}  # as Google states them


def program_of(implementation, direction, shape, dtype, sharding):
    """Returns the function of a direction and its abstract arguments, a tuple.

    Backwards they are what the forward pass keeps, and the gradients of h and of the last state.
    """
    run = IMPLEMENTATIONS[implementation]
    array = functools.partial(jax.ShapeDtypeStruct, sharding=sharding)
    sequence, state = array(shape, dtype), array((shape[0], shape[2]), "float32")
    arguments = (sequence, sequence, state)
    if direction == "forward":
        return run, arguments
    pull = jax.eval_shape(lambda *x: jax.vjp(run, *x)[1], *arguments)
    gradients = (array(shape, "float32"), state)
    return (lambda pull, gradients: pull(gradients)), (tpu.abstract(pull, sharding), gradients)


def floor(direction, shape, dtype):
    """Returns the bytes that must move: of x, a and h, or of a, h and three gradients."""
    item = jnp.dtype(dtype).itemsize
    return math.prod(shape) * (2 * item + 4 if direction == "forward" else 3 * item + 2 * 4)


def measure(chip, implementation, direction, shape, dtype):
    """Compiles one program; returns a dict of what is known about it."""
    sharding = tpu.sharding_of(chip)
    function, arguments = program_of(implementation, direction, shape, dtype, sharding)
    _, found = tpu.compile_for_tpu(function, *arguments)
    return found | {"floor_bytes": floor(direction, shape, dtype)}


def measure_all(args):
    """Compiles all programs; returns a list of dicts, one a size, with one dict a program."""
    results = []
    sizes = itertools.product(args.chips, DTYPES, args.rows, args.lengths, WIDTHS)
    for chip, dtype, rows, length, width in sizes:
        shape = (rows, length, width)
        result = {"chip": chip, "dtype": dtype, "shape": shape}
        for name in ("pallas", "associative"):
            if name == "pallas" or (dtype == "float32" and rows == 1):
                result[name] = [measure(chip, name, x, shape, dtype) for x in DIRECTIONS]
        print(json.dumps(result), file=sys.stderr)
        results.append(result)
    return results


def schedules(chips):
    """Reads the compiler's schedules of the kernels; returns a list of dicts.

    `cycles` are those of one tile of 8 steps and 128 channels in the inner loop. `least_ghz` is the
    clock at which the loop is as fast as the memory: at a higher one the memory is the limit.
    """
    folder, found = tpu.keep_schedules(), []
    for chip, dtype, width, direction in itertools.product(chips, DTYPES, WIDTHS, DIRECTIONS):
        shape = (1, 2048, width)
        sharding = tpu.sharding_of(chip)
        function, arguments = program_of("pallas", direction, shape, dtype, sharding)
        tpu.compile_for_tpu(function, *arguments)
        schedule = tpu.newest_schedule(folder, f"linear_recurrence_{direction}")
        tiles = GROUP // STEPS * -(-Blocks(shape).channels // LANES)
        cycles = schedule["loop_cycles"] / tiles
        bytes_of_tile = floor(direction, shape, dtype) * STEPS * LANES / math.prod(shape)
        result = {"chip": chip, "dtype": dtype, "width": width, "kernel": direction}
        result |= {"vmem_bytes": schedule["vmem_bytes"], "cycles": cycles}
        found.append(result | {"least_ghz": HBM_GB_PER_S[chip] * cycles / bytes_of_tile})
    shutil.rmtree(folder)
    return found


def in_new_process(args):
    """Calls `schedules` in a process of its own: the compiler reads its options once."""
    command = [sys.executable, __file__, "--schedules", "--chips", *args.chips]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def markdown(report):
    """Writes a report as a page."""
    programs, kernels = [], []
    for x in report["results"]:
        for name in ("pallas", "associative"):
            if name in x:
                cells = [y for found in x[name] for y in cells_of(found)]
                programs.append([x["chip"], x["dtype"], *x["shape"], name, *cells])
    for x in report["schedules"]:
        numbers = f"{x['vmem_bytes'] / 1e6:.1f}", f"{x['cycles']:.1f}", f"{x['least_ghz']:.2f}"
        kernels.append([x["chip"], x["dtype"], x["width"], x["kernel"], *numbers])
    columns = [f"{x} {y}" for x in DIRECTIONS for y in ("GB", "of floor", "seconds")]
    lines = [
        "# The linear recurrence, compiled for TPUs",
        "",
        "Compiled by the TPU's own compiler on a machine without one, "
        f"jax {report['versions']['jax']}, libtpu {report['libtpu']}. Nothing of it has run on a "
        "TPU: it shows what a program moves and needs, not how long it takes.",
        "",
        f"```\n{report['command']}\n```",
        "",
        "Bytes read and written, also as multiples of the floor (forward x, a and h once; backward "
        "a, h and the gradients of h, x and a once), and seconds of the compiler. XLA counts those "
        "of its own operations; those of a kernel are counted from the blocks that it moves.",
        "",
        *tpu.table(["chip", "dtype", "B", "T", "L", "implementation", *columns], programs),
        "",
        "The kernels: the fast memory of all their buffers (of some 16 MB that a kernel may take "
        "unasked), the cycles of the inner loop for a tile of 8 steps and 128 channels in the "
        "compiler's schedule, and the clock that this needs to keep up with the memory of the chip "
        f"({', '.join(f'{x}: {HBM_GB_PER_S[x]} GB/s' for x in report['chips'])}).",
        "",
        *tpu.table(["chip", "dtype", "L", "kernel", "MB", "cycles", "GHz"], kernels),
    ]
    return "\n".join(lines) + "\n"


def cells_of(found):
    """Returns the cells of one program, a list of strings."""
    moved = found["bytes_accessed"]
    share = moved / found["floor_bytes"]
    return [f"{moved / 1e9:.3f}", f"{share:.2f}", f"{found['compile_s']:.1f}"]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chips", choices=tpu.CHIPS, nargs="+", default=list(tpu.CHIPS))
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--schedules", action="store_true", help="print these alone, as JSON")
    parser.add_argument("--write", metavar="NAME", help="write results/NAME.json and NAME.md")
    args = parser.parse_args()
    if args.schedules:
        print(json.dumps(schedules(args.chips)))
        return
    report = {"command": f"python benchmarks/tpu_kernels.py {shlex.join(sys.argv[1:])}".strip()}
    report |= {"machine": host(), "versions": versions(), "libtpu": tpu.version()}
    report |= {"chips": args.chips, "schedules": in_new_process(args)}
    report["results"] = measure_all(args)
    publish(HERE, args.write, report, markdown(report))


if __name__ == "__main__":
    main()
