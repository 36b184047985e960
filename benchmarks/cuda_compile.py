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
from typing import NamedTuple
from unittest import mock

import tpu_compile  # isort: skip, it sets what JAX reads when it is imported

import jax
import tpu
from jax.experimental import topologies
from kernel_sizes import SIZES
from publish import publish
from reports import command

from keras_rgemma.benchmarks.machine import host, versions
from keras_rgemma.generation import jax as programs
from keras_rgemma.ops.linear_recurrence import linear_recurrence

HERE = pathlib.Path(__file__).resolve().parent


class Gpu(NamedTuple):
    """Describes a GPU to XLA: counts, bytes, bytes a second and GHz."""

    name: str
    capability: tuple
    cores: int
    threads: int
    shared: int
    most_shared: int
    bandwidth: float
    l2: int
    memory: float
    clock: float


GPUS = {
    "T4": Gpu("Tesla T4", (7, 5), 40, 1024, 65536, 65536, 320e9, 4 << 20, 15.8e9, 1.59),
    "A100": Gpu(
        "A100-SXM4-40GB", (8, 0), 108, 2048, 167936, 166912, 1555e9, 40 << 20, 42.4e9, 1.41
    ),
    "H100": Gpu("H100 80GB HBM3", (9, 0), 132, 2048, 233472, 232448, 3352e9, 50 << 20, 85e9, 1.98),
}
TEXT = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: {shared} threads_per_core_limit: {threads} core_count: {cores}
  fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: {bandwidth:.0f} l2_cache_size: {l2}
  clock_rate_ghz: {clock} device_memory_size: {memory:.0f}
  shared_memory_per_block_optin: {most_shared}
  cuda_compute_capability {{ major: {capability[0]} minor: {capability[1]} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 1 }}
device_description_str: "NVIDIA {name}"
"""


def sharding_of(gpu):
    """Returns the sharding of arrays that lie on one GPU of a kind, such as "H100"."""
    text = TEXT.format(**GPUS[gpu]._asdict())
    topology = topologies.get_topology_desc(
        platform="cuda", topology_name="", topology="1x1x1", target_config=text
    )
    return jax.sharding.SingleDeviceSharding(topology.devices[0])


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
    capability = GPUS[gpu].capability
    has_bfloat16 = capability >= (8, 0)
    dtype = "bfloat16" if has_bfloat16 else "float32" if work == "recurrence" else "float16"
    with (
        mock.patch("jax.default_backend", lambda: "gpu"),
        mock.patch("keras_rgemma.ops.linear_recurrence.jax.cuda_capability", lambda: capability),
        mock.patch.object(programs, "cuda_capability", lambda: capability),
    ):
        options = None
        if work == "recurrence":
            function, arguments = recurrence(dtype)
        else:
            backbone = tpu_compile.build(preset, work == "train", dtype)
            function, arguments = tpu_compile.WORK[work](backbone, tokens)
            values = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in backbone.variables]
            arguments = (values, *arguments)
            options = programs.compiler_options(backbone)
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
