"""Other packages do the same work as this one, and the table compares what belongs together."""

import json
import pathlib
import runpy
import subprocess
import sys

import pytest

from backend_independent import backend_independent

pytestmark = backend_independent

FOLDER = pathlib.Path(__file__).parents[2] / "benchmarks"
SCRIPT = FOLDER / "against_peers.py"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(FOLDER))
    try:
        yield runpy.run_path(str(SCRIPT))
    finally:
        sys.path.remove(str(FOLDER))


def result(rate, first=2.0):
    return {"parameters": 100, "train": {"first_s": first, "tokens_per_s": rate}}


def test_a_ratio_is_of_the_same_round_and_the_median_counts(script):
    targets = sys.modules["targets"]
    limits = {"matmul_gflops": 6e-7, "read_gb_per_s": 1.0}  # 600 operations a second
    rounds = [
        {
            "ceilings": limits,
            ("keras-rgemma", "jax", ""): result(ours, 3.0),
            ("keras-rgemma", "jax", "bfloat16"): result(2 * ours),
            ("Gemma", "jax", ""): result(theirs),
            ("transformers", "torch", ""): {"error": "killed"},
        }
        for ours, theirs in ((1.0, 2.0), (4.0, 2.0), (2.0, 2.0))
    ]

    def ratios(number, reference, variant=""):
        target = targets.Target("jax", number, reference, 1.0, 2.0, variant)
        return script["ratios"](target, rounds, "float32")

    assert ratios("train", "Gemma") == [0.5, 2.0, 1.0]
    assert ratios("train", targets.BOUND) == [1.0, 4.0, 2.0]  # 600 / (6 * 100) tokens a second
    assert ratios("first train", "Gemma") == pytest.approx([2 / 3] * 3)
    assert ratios("train", targets.OURS, "bfloat16") == [2.0] * 3
    assert ratios("train", "transformers") == []
    rows = script["table_of_targets"](
        rounds,
        "float32",
        [targets.Target("jax", "train", "Gemma", *limits) for limits in ((1.1, 2.0), (0.5, 0.9))],
    )
    assert [row[3] for row in rows[1:]] == ["1.00 (0.50, 2.00)"] * 2
    assert [row[-1] for row in rows[1:]] == ["below the floor", "goal"]


@pytest.mark.slow
def test_every_package_does_the_work():
    command = [sys.executable, str(SCRIPT), "--size", "tiny", "--backends", "torch"]
    command += ["--rounds", "1", "--repeats", "1", "--variants", "int8"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (results,) = json.loads(done.stdout.strip().splitlines()[-1])["results"]
    ours, theirs = results["keras-rgemma torch"], results["transformers torch"]
    assert ours["parameters"] == theirs["parameters"] == results["recurrentgemma jax"]["parameters"]
    assert set(results) == {
        *("keras-rgemma torch", "keras-rgemma torch int8", "transformers torch"),
        *("recurrentgemma jax", "Gemma torch"),
    }
    for name, found in results.items():
        for number in ("prefill", "decode B1", "decode B8", *(["train"] * ("int8" not in name))):
            assert min(found[number].values()) > 0
    assert done.stdout.count("| torch | ") > 10
