"""Compiles lowered programs, and tells what they need of a device."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from typing import Any

import jax

from keras_rgemma.types import Tree

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
# What XLA says when a program does not fit, in several words: "Used 20.10G of 15.75G hbm",
# "temporaries (400.00G) exceeds available HBM (15.75G)".
_NEEDED = (
    re.compile(r"Total hbm usage >= ([\d.]+)([KMGT]?)"),
    re.compile(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm"),
    re.compile(r"\(([\d.]+)([KMGT]?)\) exceeds available"),
)


def compile_measured(
    lower: Callable[[], jax.stages.Lowered], compiler_options: dict[str, Any] | None = None
) -> tuple[jax.stages.Compiled, dict[str, Any]]:
    """Lowers and compiles a program.

    Args:
        lower: function that returns the `jax.stages.Lowered`.
        compiler_options: dict of XLA's options, or None.

    Returns:
        A pair of the compiled program and a dict: seconds of tracing and of compiling, the seconds
        of all threads while it compiled, floating-point operations, and the bytes of arguments,
        results, arguments that results take the place of, temporaries and generated code, and of
        all that is read and written. What is inside of a loop counts once.
    """
    start = time.perf_counter()
    lowered = lower()
    traced, threads = time.perf_counter(), time.process_time()
    compiled = lowered.compile(compiler_options)
    end, threads = time.perf_counter(), time.process_time() - threads
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    return compiled, {
        "trace_s": traced - start,
        "compile_s": end - traced,
        "compile_cpu_s": threads,
        "flops": cost.get("flops"),
        "bytes_accessed": cost.get("bytes accessed"),
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "alias_bytes": memory.alias_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "code_bytes": memory.generated_code_size_in_bytes,
    }


def needed_bytes(error: BaseException) -> int | None:
    """Reads how much memory a program needs for which the compiler says that there is too little.

    Args:
        error: the exception of the compiler.

    Returns:
        int, bytes of a device; 0 if the message does not tell; None for any other error.
    """
    message = str(error)
    if not isinstance(error, jax.errors.JaxRuntimeError) or "RESOURCE_EXHAUSTED" not in message:
        return None
    for pattern in _NEEDED:
        if match := pattern.search(message):
            return int(float(match[1]) * _UNITS[match[2]])
    return 0


def bytes_a_device(tree: Tree) -> int:
    """Sums the bytes of abstract arrays on each of the devices that they lie on, int."""

    def of_array(x: jax.ShapeDtypeStruct) -> int:
        shape = x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)
        return jax.numpy.dtype(x.dtype).itemsize * math.prod(shape)

    return sum(map(of_array, jax.tree.leaves(tree)))
