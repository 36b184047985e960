"""Triton for another process, where PyTorch came without it.

It is not installed beside the other packages of the tests: PyTorch's compiler would import it
wherever it can, and beside JAX and TensorFlow Triton 3.9 ends the process.
"""

import importlib.util
import os
import subprocess
import sys

import pytest

TRITON = "triton==3.9.0"


def environment(folder):
    """The environment of a process that finds Triton, which a folder gets if it has to."""
    if importlib.util.find_spec("triton") is not None:
        return dict(os.environ)
    pip = [sys.executable, "-m", "pip"]
    # Not `find_spec("pip")`: setuptools then takes this process for pip, and is broken in it.
    has_pip = subprocess.run([*pip, "--version"], capture_output=True).returncode == 0
    if sys.platform != "linux" or not has_pip:
        pytest.skip("there is no Triton for this system, or nothing to install it with")
    install = [*pip, "install", "-q", "--no-deps", "--target", str(folder)]
    subprocess.run([*install, TRITON], check=True)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(folder)])}
