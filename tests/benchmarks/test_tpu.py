"""The scripts that compile for TPUs run where libtpu is installed."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

from backend_independent import backend_independent

SCRIPTS = pathlib.Path(__file__).parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the compiler: pip install libtpu"
)


def last_line(script, *arguments):
    command = [sys.executable, str(SCRIPTS / script), *arguments]
    # The flags of the tests are for XLA on CPUs; the TPU's compiler refuses what it does not know.
    environ = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(command, capture_output=True, text=True, env=environ)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


@backend_independent
@pytest.mark.slow
def test_kernels_move_what_they_must():
    report = last_line("tpu_kernels.py", "--chips", "v5e", "--lengths", "512", "--rows", "1")
    programs = [found for result in report["results"] for found in result["pallas"]]
    assert len(programs) == 12
    assert all(x["bytes_accessed"] <= 1.1 * x["floor_bytes"] for x in programs)
    assert len(report["schedules"]) == 12
    # The compiler's default limit for a kernel.
    assert all(x["cycles"] > 1 and x["vmem_bytes"] < 2**24 for x in report["schedules"])


@backend_independent
@pytest.mark.slow
@pytest.mark.parametrize("work", ["prefill", "decode", "train"])
def test_a_model_is_compiled(work):
    size = ("--preset", "rgemma_tiny_en", "--tokens", "64")
    report = last_line("tpu_compile.py", *size, "--work", work, "--attention", "blocks")
    assert [x["recurrence"] for x in report["results"]] == ["associative", "pallas"]
    assert all(x["argument_bytes"] > 2 * 3_000_000 for x in report["results"])
