"""Compiles programs in processes of their own, and keeps what was found in a cache."""

import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from keras_rgemma.distribution.devices import ENVIRONMENT, device_named
from keras_rgemma.files import new_file, read_json
from keras_rgemma.workers import run_module

_PACKAGE = pathlib.Path(__file__).resolve().parent.parent
_WORKER = "keras_rgemma.distribution.worker"
# The module that has a compiler, the extra that installs it, and the packages that it comes in.
_COMPILERS = {
    "tpu": (("libtpu",), "plan-tpu", ("libtpu",)),
    "cuda": (
        ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13"),
        "plan-gpu",
        ("jax-cuda12-plugin", "jax-cuda13-plugin"),
    ),
}
_ERRORS = {"ValueError": ValueError, "TypeError": TypeError}
_TAIL = 1500  # characters of what a process wrote before it failed


def check_installed(platform: str) -> None:
    """Raises ImportError if the compiler of a platform, "tpu" or "cuda", is not installed."""
    modules, extra, _ = _COMPILERS[platform]
    missing = "" if _is_there("jax") else "jax"
    if not any(map(_is_there, modules)):
        missing = modules[0]
    if missing:
        raise ImportError(
            f"Programs for this device are compiled with {missing!r}, which is not installed. "
            f"Install it: pip install 'keras-rgemma[{extra}]'. It needs no "
            f"{'TPU' if platform == 'tpu' else 'GPU'}."
        )


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it
        return False


def compile_job(
    job: Mapping[str, Any], cache: bool = True, progress: bool = True
) -> dict[str, Any]:
    """Compiles a program of `worker.run` in a process of its own, or finds it in the cache.

    Args:
        job: dict, see `worker.run`.
        cache: bool, whether the cache is read; what is compiled is always written to it.
        progress: bool, whether a line about it goes to standard error.

    Returns:
        The dict of `worker.run`.

    Raises:
        ValueError, TypeError: the programs of these settings cannot be made.
        RuntimeError: the process failed.
    """
    path = _cache_path(job)
    if cache and path.is_file():
        return read_json(path)
    name = f"{job['program']} of {job['rows']} x {job['tokens']} for {job['device']}"
    with_line = functools.partial(_say, name) if progress else lambda *_, **__: None
    start = time.monotonic()
    result = _run(job, lambda: with_line(time.monotonic() - start))
    with_line(time.monotonic() - start, is_done=True)
    if "error" in result:
        raise _ERRORS.get(result["kind"], RuntimeError)(result["error"])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as file:
            file.write_text(json.dumps(result), encoding="utf-8")
    except OSError as error:  # what was compiled is worth more than the cache
        print(f"The cache could not be written: {error}", file=sys.stderr)
    return result


def _run(job: Mapping[str, Any], tick: Callable[[], object]) -> dict[str, Any]:
    """Runs the worker, and calls `tick` each second until it ends."""
    env = {**os.environ, **ENVIRONMENT}
    env.pop("XLA_FLAGS", None)  # for devices that are here; another compiler may refuse them
    env.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    done = run_module(_WORKER, json.dumps(job).encode(), env, tick, **pipes)
    if done.returncode:
        ended = f"ended with {done.returncode}"
        if done.returncode == -9:
            ended = "was killed, as for want of memory of this machine"
        raise RuntimeError(
            f"The compiler of {job['device']!r} failed: its process {ended}. Its last words:\n"
            f"{done.stderr.decode(errors='replace')[-_TAIL:]}"
        )
    return json.loads(done.stdout.splitlines()[-1])


def _say(name: str, seconds: float, is_done: bool = False) -> None:
    """Writes what is compiled and for how long; a terminal sees it while it happens."""
    if sys.stderr.isatty():
        print(f"\rCompiling {name}: {seconds:.0f} s", end="", file=sys.stderr, flush=True)
        if is_done:
            print(file=sys.stderr)
    elif is_done:
        print(f"Compiled {name}: {seconds:.0f} s", file=sys.stderr, flush=True)


def cache_folder() -> pathlib.Path:
    """Returns the folder of what was compiled, a `pathlib.Path`."""
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(home) / "keras_rgemma" / "plans"


def _cache_path(job: Mapping[str, Any]) -> pathlib.Path:
    *_, packages = _COMPILERS[device_named(job["device"]).platform]
    versions = {name: _version(name) for name in ("jax", "keras", "keras-hub", *packages)}
    key = json.dumps([job, versions, _code()], sort_keys=True)
    return cache_folder() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def _code() -> str:
    """Hashes the package: its version does not change with each line that somebody changes."""
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
