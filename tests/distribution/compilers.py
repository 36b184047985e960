"""Installs the compiler for TPUs where no other test sees it.

JAX looks for a TPU wherever libtpu is installed, and libtpu then complains on standard error, so it
is in no environment that other tests run in.
"""

import functools
import importlib.metadata
import importlib.util
import os
import pathlib
import subprocess
import sys
import tempfile

import pytest

from keras_rgemma.distribution.compiling import cache_folder

TESTS = pathlib.Path(__file__).parent.parent


@functools.cache
def libtpu_folder():
    """The folder of the libtpu that this version of JAX asks for; it is fetched once."""
    if found := importlib.util.find_spec("libtpu"):
        return str(pathlib.Path(found.origin).parent.parent)
    asked = [x for x in importlib.metadata.requires("jax") if x.startswith("libtpu")]
    requirement = asked[0].partition(";")[0].strip()
    folder = cache_folder().parent / "tests" / requirement.replace("*", "x")
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = tempfile.mkdtemp(dir=folder.parent)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        done = subprocess.run(
            [*pip, "--target", partial, requirement], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"{requirement} cannot be fetched: {done.stderr[-200:]}")
        pathlib.Path(partial).rename(folder)
    return str(folder)


def run(*arguments, stdin=None, **env):
    """Runs Python with the package and the compiler; returns the `CompletedProcess`."""
    paths = (TESTS, TESTS.parent, libtpu_folder())
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), **env}
    env.pop("XLA_FLAGS", None)
    return subprocess.run(
        [sys.executable, *map(str, arguments)], env=env, input=stdin, capture_output=True, text=True
    )
