"""The kernels compile for GPUs that are not at hand, and move little more than they must."""

import json
import pathlib
import subprocess
import sys

import own_triton
from backend_independent import backend_independent

SCRIPT = pathlib.Path(__file__).parents[2] / "benchmarks" / "kernels_triton.py"
REPORT = SCRIPT.parent / "results" / "kernels_triton.json"


def check(programs):
    for program in programs:
        assert program["stack_bytes"] == 0, program
        assert program["registers"] <= 128, program  # two programs on a multiprocessor
        assert program["shared_bytes"] <= 48 * 1024, program
        ratio = program["bytes_per_element"] / program["floor"]
        assert 1.0 <= ratio <= 1.1, program


def check_token_kernels(programs):
    assert len({x["kernel"] for x in programs}) == 5
    for program in programs:
        assert program["stack_bytes"] == 0, program  # no register is spilled
        assert program["registers"] <= 64, program
        assert program["shared_bytes"] <= 48 * 1024, program


@backend_independent
def test_a_kernel_compiles_without_a_gpu():
    command = [sys.executable, str(SCRIPT), "--devices", "H100", "--sizes", "110m"]
    done = subprocess.run(
        [*command, "--dtypes", "bfloat16"],
        env={**own_triton.environment(), "KERAS_BACKEND": "torch"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout.strip().splitlines()[-1])
    check_token_kernels(report["token"])
    programs = report["compiled"]
    assert [x["kernel"] for x in programs] == ["forward", "gradient"]
    # x, a and h; and the gradients of all three, a, h and what was before it.
    assert [int(x["floor"]) for x in programs] == [8, 14]
    check(programs)


@backend_independent
def test_what_was_compiled_for_all_devices_holds():
    report = json.loads(REPORT.read_text(encoding="utf-8"))
    check_token_kernels(report["token"])
    programs = report["compiled"]
    assert {x["device"] for x in programs} == {"T4", "A100", "H100"}
    assert {x["size"] for x in programs} == {"110m", "2b", "9b"}
    check(programs)
