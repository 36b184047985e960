"""Runs the whole suite on all three backends, two at a time, and fails if any of them does.

python tests/run.py [--newest | --oldest] [pytest arguments]

With --newest or --oldest it runs in an environment of its own, which it makes anew: with the newest
release of everything, beyond the upper bounds in pyproject.toml, too, or with the lowest versions
that these allow. What was found so is in tests/versions.md.
"""

import argparse
import concurrent.futures
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import environments

ROOT = pathlib.Path(__file__).resolve().parent.parent
BACKENDS = ("jax", "tensorflow", "torch")
# Two processes share the cores; threads that wait for each other would cost more than they gain.
QUIET_AND_SINGLE_THREADED = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "OMP_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
}


def compiled_once(folder):
    """The settings with which JAX keeps every program that it compiles, for all tests."""
    return {
        "JAX_COMPILATION_CACHE_DIR": folder,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def run(python, backend, arguments, settings):
    """The exit code, the output and the seconds of pytest on one backend."""
    start = time.monotonic()
    environment = {**os.environ, "KERAS_BACKEND": backend, **QUIET_AND_SINGLE_THREADED, **settings}
    result = subprocess.run(
        [python, "-m", "pytest", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return result.returncode, result.stdout, time.monotonic() - start


def jobs(arguments):
    """Pairs of a backend and the arguments of pytest.

    Each backend is cut in three: both cores have work to the end, and no process compiles so many
    programs that XLA runs out of memory maps, of which Linux gives 65,530 to each. The three runs
    of JAX are apart, so that later ones find programs of earlier ones.
    """
    if arguments:
        return [(backend, arguments) for backend in BACKENDS]
    entries = sorted(str(path.parent) for path in ROOT.glob("tests/*/test_*.py"))
    entries = sorted({*entries, *map(str, ROOT.glob("tests/test_*.py"))})
    return [(backend, entries[start::3]) for start in range(3) for backend in BACKENDS]


def parse(arguments):
    """A pair of the kind of environment, "newest", "oldest" or None, and pytest's arguments."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s [--newest | --oldest] [pytest arguments]", allow_abbrev=False
    )
    kinds = parser.add_mutually_exclusive_group()
    for kind in environments.KINDS:
        kinds.add_argument(f"--{kind}", action="store_const", const=kind, dest="kind")
    options, rest = parser.parse_known_args(arguments)
    return options.kind, rest


def check_style():
    """The exit codes of ruff's two checks."""
    checks = [("check",), ("format", "--check")]
    return [subprocess.call([sys.executable, "-m", "ruff", *how, str(ROOT)]) for how in checks]


def main():
    kind, arguments = parse(sys.argv[1:])
    if kind:
        python = environments.create(kind)
        print(" ".join(f"{x}=={y}" for x, y in environments.versions(python).items()), flush=True)
        codes = []  # another version of ruff has another style
    else:
        python, codes = sys.executable, check_style()
    # Most of a run is compilation on one core.
    with (
        tempfile.TemporaryDirectory() as folder,
        concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool,
    ):
        settings = compiled_once(folder)
        runs = [
            (backend, pool.submit(run, python, backend, more, settings))
            for backend, more in jobs(arguments)
        ]
        for backend, pending in runs:
            code, output, seconds = pending.result()
            print(f"===== {backend}, {seconds:.0f} s =====\n{output}", flush=True)
            codes.append(code)
    sys.exit(max(codes))


if __name__ == "__main__":
    main()
