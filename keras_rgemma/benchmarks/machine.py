"""Measures fairly: ceilings of the machine, repeats with a spread, peak memory, own processes."""

from __future__ import annotations

import concurrent.futures
import importlib.metadata
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_rgemma.backend import BACKENDS
from keras_rgemma.types import StrPath

_STATUS = pathlib.Path("/proc/self/status")


def repeat(function: Callable[[], object], warmup: int, repeats: int) -> list[float]:
    """Times each of `repeats` calls in seconds, after `warmup` calls that do not count."""
    for _ in range(warmup):
        function()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return seconds


def summary(amount: float, seconds: Sequence[float]) -> dict[str, float]:
    """Computes the median, lowest and highest rate of `amount` units in each of these seconds."""
    return {
        "median": amount / statistics.median(seconds),
        "low": amount / max(seconds),
        "high": amount / min(seconds),
    }


def ceilings() -> dict[str, float]:
    """Measures the ceilings of the host now: the rates of float32 products and of reading memory.

    Returns:
        dict of `matmul_gflops` and `read_gb_per_s`.
    """
    size = 2048
    left, right = (np.random.RandomState(i).rand(size, size).astype("float32") for i in (0, 1))
    product = summary(2 * size**3 / 1e9, repeat(lambda: left @ right, 2, 5))
    memory = np.ones((os.cpu_count(), 2**27 // os.cpu_count()), "float32")
    # A thread for each CPU: one alone does not use up what the memory can give.
    with concurrent.futures.ThreadPoolExecutor(len(memory)) as threads:
        read = summary(memory.nbytes / 1e9, repeat(lambda: [*threads.map(np.max, memory)], 1, 5))
    return {"matmul_gflops": product["high"], "read_gb_per_s": read["high"]}


def host() -> dict[str, Any]:
    """Returns the processor of this machine and the number of its CPUs."""
    return {"processor": platform.processor() or platform.machine(), "cpus": os.cpu_count()}


def commit_of(folder: StrPath) -> str | None:
    """Returns the short name of the commit that is checked out in a folder, or None."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return done.stdout.strip() or None


def versions() -> dict[str, str | None]:
    """Returns the versions of Keras, KerasHub and the backends, and the commit of a checkout."""
    version_of = {}
    for name in ("keras", "keras-hub", *BACKENDS):
        try:
            version_of[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version_of[name] = None
    return {**version_of, "commit": commit_of(pathlib.Path(__file__).parent)}


def accelerator_peak_bytes(backend: str) -> int:
    """Returns the peak memory of this process on the accelerator of a backend, 0 without one."""
    library = sys.modules[backend]
    if backend == "torch":
        return library.cuda.max_memory_allocated() if library.cuda.is_available() else 0
    if backend == "jax":
        return (library.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
    if not library.config.list_physical_devices("GPU"):
        return 0
    return library.config.experimental.get_memory_info("GPU:0")["peak"]


def resident_bytes(field: str) -> int:
    """Returns the memory of this process on Linux: `VmRSS` now, `VmHWM` at its peak."""
    line = next(x for x in _STATUS.read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) * 1024


def reset_peak() -> None:
    """Resets `VmHWM`, the peak, to the memory that this process holds now."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def resident_peak_bytes() -> int:
    """Returns the peak memory of this process on the host."""
    if _STATUS.exists():
        # `ru_maxrss` starts from what the parent process held.
        return resident_bytes("VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def end_above(limit: int, report: Callable[[], dict[str, Any]]) -> None:
    """Ends this process as soon as it holds more memory than `limit`: a child of `in_child`.

    A library that runs out of memory may crash, or make the machine crawl; a process that ends in
    time still tells what it has measured.

    Args:
        limit: int, bytes.
        report: function that returns the dict to print as the last line.
    """

    def watch() -> None:
        while resident_bytes("VmRSS") <= limit:
            time.sleep(0.02)
        print(json.dumps(report()), flush=True)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def in_child(
    backend: str, module: str, *arguments: object, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Runs a module or a script on a backend, in a process of its own.

    Args:
        backend: str.
        module: str, the name of a module or the path of a `.py` file, whose last line is JSON.
        *arguments: the arguments of its command line.
        environment: dict of environment variables that it gets beside those of this process.

    Returns:
        The dict in its last line, or a dict with an `error`.
    """
    what = [module] if module.endswith(".py") else ["-m", module]
    command = [sys.executable, *what, *map(str, arguments)]
    variables = {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", **(environment or {})}
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True)
    if done.returncode:
        # A process that is killed, for its memory perhaps, writes nothing.
        message = "".join(done.stderr.strip().splitlines()[-1:])
        return {"error": f"ended with code {done.returncode}: {message or 'no message'}"}
    return json.loads(done.stdout.strip().splitlines()[-1])
