"""Measures forms of a matrix product on JAX: what `default_implementation` of products rests on.

    python benchmarks/products.py
    python benchmarks/products.py --rows 1 8 16 --sizes 2b 110m --write products

Runs the products of MLPs of the sizes of 2B (six: 708 MB in bfloat16, no cache holds them) or 110M
one after another in one program, as a decode step does, and prints gigabytes of weights a second
beside what the machine reads at best. "[in, out]" is how Keras stores a kernel, "[out, in]" how
Hugging Face does. `--write NAME` writes benchmarks/results/NAME.json and benchmarks/NAME.md.
"""

import argparse
import itertools
import pathlib
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import reports
from against_peers import markdown
from publish import publish

from keras_rgemma.benchmarks.machine import ceilings, host, repeat, versions

FOLDER = pathlib.Path(__file__).parent
SIZES = {"2b": (2560, 7680, 6), "110m": (768, 2304, 12), "tiny": (64, 96, 2)}
IN_OUT, OUT_IN = "[in, out]", "[out, in]"


def product(x, kernel, layout, sums):
    """Multiplies rows [M, I] by a kernel; `sums` is the dtype of the result, or None for `x`'s."""
    contracted = (((1,), (0 if layout == IN_OUT else 1,)), ((), ()))
    return jax.lax.dot_general(x, kernel, contracted, preferred_element_type=sums)


def two_rows(x, kernel, layout, sums):
    """Multiplies as `product`, with a row of zeros below a single one."""
    return product(jnp.pad(x, ((0, 1), (0, 0))), kernel, layout, sums)[:1]


def on_the_left(x, kernel, layout, sums):
    """Multiplies with the kernel [J, I] as the left factor, a row of less than float32 as two."""
    del layout
    is_padded = len(x) == 1 and x.dtype != "float32"
    rows = jnp.pad(x, ((0, 1), (0, 0))) if is_padded else x
    y = jax.lax.dot_general(kernel, rows, (((1,), (1,)), ((), ())), preferred_element_type=sums)
    return jax.lax.optimization_barrier(y).T[: len(x)]


def forms(rows):
    """Lists the forms to measure: dicts of a dtype, a layout, the dtype of sums, and a function."""
    kinds = [("float32", None), ("bfloat16", None), ("bfloat16", "float32"), ("int8", "int32")]
    functions = {"as it is": product, **({"two rows": two_rows} if rows == 1 else {})}
    functions["on the left"] = on_the_left
    return [
        {"dtype": dtype, "sums": sums, "layout": layout, "form": form, "function": function}
        for dtype, sums in kinds
        for layout in (IN_OUT, OUT_IN)
        for form, function in functions.items()
        if (dtype != "float32" or form != "two rows")
        and (layout == OUT_IN or form != "on the left")
    ]


def kernels(size, dtype, layout):
    """Makes pairs of kernels [I, J] and [J, I], of numbers that int8 can hold."""
    inputs, outputs, count = SIZES[size]
    numbers = np.random.RandomState(0).randint(-9, 10, (inputs, outputs)).astype("int8")
    shapes = (inputs, outputs), (outputs, inputs)
    shapes = [shape[:: 1 if layout == IN_OUT else -1] for shape in shapes]
    return [
        [jnp.array(np.roll(numbers, i).reshape(shape), dtype) for shape in shapes]
        for i in range(count)
    ]


def measure(form, size, rows, steps, repeats):
    """Measures one form; returns the seconds of a step and the gigabytes of weights a second."""
    weights = kernels(size, form["dtype"], form["layout"])

    def step(x, weights):
        for kernel in itertools.chain.from_iterable(weights):
            x = form["function"](x, kernel, form["layout"], form["sums"])
            x = (x % 17).astype(form["dtype"])  # numbers of the same size
        return x

    @jax.jit
    def run(x, weights):
        return jax.lax.fori_loop(0, steps, lambda _, x: step(x, weights), x)

    x = jnp.ones((rows, SIZES[size][0]), form["dtype"])
    seconds = repeat(lambda: jax.block_until_ready(run(x, weights)), 1, repeats)
    step_s = statistics.median(seconds) / steps
    size_gb = sum(kernel.nbytes for pair in weights for kernel in pair) / 1e9
    return {"ms": 1e3 * step_s, "gb_per_s": size_gb / step_s}


def page(report):
    """Writes a report as a page."""
    machine, limits = report["machine"], report["ceilings"]
    rows = [["size", "rows", "weights", "sums", "stored as", "form", "ms", "GB/s"]]
    for x in report["results"]:
        kind = [
            x["size"],
            str(x["rows"]),
            x["dtype"],
            x["sums"] or x["dtype"],
            x["layout"],
            x["form"],
        ]
        rows.append([*kind, f"{x['ms']:.1f}", f"{x['gb_per_s']:.1f}"])
    return (
        "# Forms of a product on JAX\n\n"
        f"On {machine['cpus']} CPUs ({machine['processor']}, {limits['read_gb_per_s']:.1f} GB/s), "
        f"jax {report['versions']['jax']}. Milliseconds for the products of six MLPs of 2B, or of "
        "twelve of 110m.\n\n"
        f"```\n{report['command']}\n```\n\n{markdown(rows)}\n"
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", choices=SIZES, nargs="+", default=["2b"])
    parser.add_argument("--rows", type=int, nargs="+", default=[1])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", metavar="NAME", help="write results/NAME.json and NAME.md")
    args = parser.parse_args()
    results = []
    for size, rows in itertools.product(args.sizes, args.rows):
        for form in forms(rows):
            found = measure(form, size, rows, args.steps, args.repeats)
            kind = {name: x for name, x in form.items() if name != "function"}
            results.append({"size": size, "rows": rows, **kind, **found})
    report = {"command": reports.command()}
    report |= {"machine": host(), "versions": versions(), "ceilings": ceilings()}
    report["results"] = results
    publish(FOLDER, args.write, report, page(report))


if __name__ == "__main__":
    main()
