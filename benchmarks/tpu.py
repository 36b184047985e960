"""Compiles functions for TPUs with their own compiler, without a TPU: needs `pip install libtpu`.

Import it before JAX. What is compiled is the program that a TPU would run: the memory that it
needs, what it moves, and whether the compiler takes it are real. Speed is not known before it runs.
"""

import collections
import importlib.metadata
import os
import pathlib
import re
import tempfile

os.environ |= {
    "JAX_PLATFORMS": "cpu",  # of arrays that this process makes
    "KERAS_BACKEND": "jax",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # a lock keeps other processes off a TPU: there is none
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}

import jax

from keras_rgemma.distribution import topologies
from keras_rgemma.distribution.compiled import compile_measured

CHIPS = ("v5e", "v6e")


def version():
    """Returns the version of the TPU's compiler."""
    return importlib.metadata.version("libtpu")


def sharding_of(chip):
    """Returns the sharding of arrays that lie on one chip of a kind, such as "v5e"."""
    return topologies.sharding_of(f"{chip}-1")


def operations_for(chip):
    """Returns a context in which operations choose implementations as on a chip of a kind."""
    return topologies.operations_for(f"{chip}-1")


def abstract(tree, sharding):
    """Returns a tree of arrays or their specifications without values, on a device."""

    def without_value(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(without_value, tree)


def compile_for(platform, function, *arguments, **options):
    """Compiles a function of abstract arrays for the device that they lie on.

    Args:
        platform: str, "tpu" or "cuda".
        function: function of the arguments.
        *arguments: trees of `jax.ShapeDtypeStruct`.
        **options: of `jax.jit`.

    Returns:
        What `compile_measured` of the package returns: the compiled program, and a dict.
    """

    def lower():
        return jax.jit(function, **options).trace(*arguments).lower(lowering_platforms=(platform,))

    return compile_measured(lower)


def compile_for_tpu(function, *arguments, **options):
    """Compiles a function for a TPU, see `compile_for`."""
    return compile_for("tpu", function, *arguments, **options)


def estimated_cycles(text):
    """Sums what a TPU's compiler reckons that the operations of a program take.

    Operations of a loop count as often as it runs. Kernels of Pallas have no estimate, and waiting
    for memory that is copied beside other work is not part of it.

    Args:
        text: str, the compiled program.

    Returns:
        int, cycles.
    """
    computations = re.split(r"\n(?=(?:ENTRY )?%[\w.-]+ \()", text)
    starts = [re.match(r"(?:ENTRY )?(%[\w.-]+) \(", x) for x in computations]
    body_of = {x[1]: body for x, body in zip(starts, computations, strict=True) if x}

    def cycles(body):
        total = sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', body)))
        for condition, inner in re.findall(
            r" while\(.*condition=(%[\w.-]+), body=(%[\w.-]+)", body
        ):
            # The loops here count upwards: the largest number of the condition is their length.
            turns = max(map(int, re.findall(r"constant\((\d+)\)", body_of[condition])), default=1)
            total += turns * cycles(body_of[inner])
        return total

    return cycles(next(x for x in computations if x.startswith("ENTRY")))


def keep_schedules():
    """Makes the compiler write its schedules into a new folder, whose path is returned.

    Call it before the first program is compiled. Compiling takes longer then.
    """
    folder = pathlib.Path(tempfile.mkdtemp())
    os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
    return folder


def newest_schedule(folder, name):
    """Reads what the compiler wrote about the kernel that was compiled last.

    Args:
        folder: of `keep_schedules`.
        name: str, the kernel's name in the program.

    Returns:
        A dict: `vmem_bytes`, the fast memory that the kernel's buffers take, and `loop_cycles`, the
        instruction words in one turn of the kernel's inner loop, of which a core starts one a
        cycle.
    """
    of_runs = collections.defaultdict(dict)
    for path in folder.glob(f"*-{name}.*-*.txt"):
        stamp, _, stage = path.name.removesuffix(".txt").partition(f"-{name}.")
        of_runs[stamp][stage.split("-", 2)[2]] = path
    stages = of_runs[max(of_runs)]
    buffers = re.findall(r"#allocation.*space=vmem, size = (0x\w+)", stages["original"].read_text())
    # One line a word: its address, at times a label, and a ">" for each loop around it.
    words = re.findall(r"^ *0x\w+ .*?: (>*) +\{", stages["final_bundles"].read_text(), re.M)
    innermost = max(words, key=len)
    return {
        "vmem_bytes": sum(int(size, 16) for size in buffers),
        "loop_cycles": words.count(innermost),
    }


def table(names, rows):
    """Returns the lines of a table in Markdown."""
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    return lines + [f"| {' | '.join(map(str, row))} |" for row in rows]
