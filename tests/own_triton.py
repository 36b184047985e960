"""Triton for another process, where PyTorch came without it.

It is not installed beside the other packages of the tests: PyTorch's compiler would import it
wherever it can, and beside JAX and TensorFlow Triton 3.9 ends the process.
"""

import atexit
import functools
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile

import pytest

TRITON = "triton==3.9.0"


def environment():
    """The environment of a process that finds Triton, which is installed for it if need be."""
    if importlib.util.find_spec("triton") is not None:
        return dict(os.environ)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, installed()])}


def run_in_the_interpreter(file, selection):
    """Runs the tests of a file in Triton's interpreter, which is chosen before Triton is imported.

    Args:
        file: path of the file.
        selection: str, which of its tests, as pytest's option `-k` takes it; none may be skipped.
    """
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-k", selection, file],
        env={**environment(), "TRITON_INTERPRET": "1", "KERAS_TORCH_DEVICE": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " skipped" not in done.stdout, done.stdout


@functools.cache
def installed():
    """A folder with Triton, which stays until this process ends."""
    pip = [sys.executable, "-m", "pip"]
    # Not `find_spec("pip")`: setuptools then takes this process for pip, and is broken in it.
    has_pip = subprocess.run([*pip, "--version"], capture_output=True).returncode == 0
    if sys.platform != "linux" or not has_pip:
        pytest.skip("there is no Triton for this system, or nothing to install it with")
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    subprocess.run([*pip, "install", "-q", "--no-deps", "--target", folder, TRITON], check=True)
    return folder
