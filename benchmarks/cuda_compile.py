"""Compiles a model for GPUs of NVIDIA, without one: needs `pip install "jax[cuda12]"`.

    python benchmarks/cuda_compile.py --gpus H100 --work decode
    python benchmarks/cuda_compile.py --write cuda_compile

The work is that of tpu_compile.py, and "recurrence" for its kernels alone, forwards and backwards.
Told are what the compiler takes, the memory, and the number of kernels that a call launches. What
XLA chooses by trying it on the device is chosen by rules here, so speed is not told. A T4, which
has no bfloat16, computes in float16. `--write NAME` writes benchmarks/results/NAME.json and
benchmarks/NAME.md.
"""

import argparse
import json
import pathlib
import re
import sys

import tpu_compile  # isort: skip, it sets what JAX reads when it is imported

import jax
import tpu
from kernel_sizes import SIZES
from publish import publish
from reports import command

from keras_rgemma.benchmarks.machine import host, versions
from keras_rgemma.distribution.devices import device_named
from keras_rgemma.distribution.topologies import operations_for, sharding_of
from keras_rgemma.generation.jax import compiler_options
from keras_rgemma.ops.linear_recurrence import linear_recurrence

HERE = pathlib.Path(__file__).resolve().parent


GPUS = ("T4", "A100", "H100")


def recurrence(dtype, size="9b"):
    """Returns the program of the recurrence and of its gradients, and its arguments."""
    batch, length, width = SIZES[size]
    x = jax.ShapeDtypeStruct((batch, length, width), dtype)
    h = jax.ShapeDtypeStruct(x.shape, "float32")
    state = jax.ShapeDtypeStruct((batch, width), "float32")

    def run(x, a, state, h_gradient, last_gradient):
        outputs, back = jax.vjp(linear_recurrence, x, a, state)
        return outputs, back((h_gradient, last_gradient))

    return run, (x, x, state, h, state)


def kernels(text):
    """Counts what a program launches: fusions and calls of libraries, those in loops once."""
    called = re.findall(r"^ +(?:ROOT )?%\S+ = .*? (?:fusion|custom-call|copy)\(.*$", text, re.M)
    # What is inside of a fusion is part of its kernel; such computations call none of these.
    return len([line for line in called if "kind=" in line or "custom_call_target=" in line])


def measure(preset, gpu, work, tokens):
    """Compiles one program; returns a dict of what is known about it."""
    has_bfloat16 = device_named(gpu).dtype == "bfloat16"
    dtype = "bfloat16" if has_bfloat16 else "float32" if work == "recurrence" else "float16"
    with operations_for(gpu):
        options = None
        if work == "recurrence":
            function, arguments = recurrence(dtype)
        else:
            backbone = tpu_compile.build(preset, work == "train", dtype)
            function, arguments = tpu_compile.WORK[work](backbone, tokens)
            values = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in backbone.variables]
            arguments = (values, *arguments)
            options = compiler_options(backbone)
        arguments = tpu.abstract(arguments, sharding_of(gpu))
        compiled, found = tpu.compile_for("cuda", function, *arguments, compiler_options=options)
    text = compiled.as_text()
    found |= {"kernels": kernels(text), "triton": text.count("__gpu$xla.gpu.triton")}
    return {"gpu": gpu, "work": work, "dtype": dtype, "tokens": tokens, **found}


def markdown(report):
    """Writes a report as a page."""
    names = ["GPU", "work", "dtype", "tokens", "compiled s", "inputs GB", "temporary GB"]
    names += ["kernels", "of these Pallas"]
    rows = []
    for x in report["results"]:
        tokens = {"decode": 1, "recurrence": SIZES["9b"][1]}.get(x["work"], x["tokens"])
        sizes = (x[name] / 1e9 for name in ("argument_bytes", "temporary_bytes"))
        cells = [x["gpu"], x["work"], x["dtype"], tokens, f"{x['compile_s']:.0f}"]
        rows.append([*cells, *(f"{size:.2f}" for size in sizes), x["kernels"], x["triton"]])
    lines = [
        f"# {report['preset']} compiled for GPUs of NVIDIA",
        "",
        f"By XLA's compiler for CUDA on {report['cpus']} CPUs of a machine without a GPU, jax "
        f"{report['versions']['jax']}; choices that XLA makes by trying them on a device are made "
        "by rules here. Inputs are weights, tokens and the state. `recurrence` is that of "
        f"[{', '.join(map(str, SIZES['9b']))}] with its gradients. Kernels in a loop count once.",
        "",
        f"```\n{report['command']}\n```",
        "",
        *tpu.table(names, rows),
    ]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    work = ("recurrence", *tpu_compile.WORK)
    parser.add_argument("--preset", default="rgemma_2b_en")
    parser.add_argument("--gpus", choices=GPUS, nargs="+", default=list(GPUS))
    parser.add_argument("--work", choices=work, nargs="+", default=list(work))
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--write", metavar="NAME", help="write results/NAME.json and NAME.md")
    args = parser.parse_args()
    results = []
    for gpu in args.gpus:
        for name in args.work:
            results.append(measure(args.preset, gpu, name, args.tokens))
            print(json.dumps(results[-1]), file=sys.stderr)
    report = {"command": command()}
    report |= {"preset": args.preset, **host(), "versions": versions(), "results": results}
    publish(HERE, args.write, report, markdown(report))


if __name__ == "__main__":
    main()
