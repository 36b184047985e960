"""The benchmark command prints a table and the same as JSON. How fast it is, no test asserts."""

import json
import os
import pathlib
import subprocess
import sys

import keras
import pytest

from backend_independent import backend_independent
from keras_rgemma.benchmarks import compiles, finetune


@pytest.mark.slow
def test_the_command_measures_this_backend():
    command = [sys.executable, "-m", "keras_rgemma.benchmarks", "--size", "tiny", "--repeats", "1"]
    done = subprocess.run(
        [*command, "--backends", keras.config.backend(), "--measures", "stream"],
        env={**os.environ, "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    *table, _, report = done.stdout.strip().splitlines()
    report = json.loads(report)
    assert all(report["ceilings"][name] > 0 for name in ("matmul_gflops", "read_gb_per_s"))
    assert [result["what"] for result in report["results"]] == ["stream"]
    for line, result in zip(table[-1:], report["results"], strict=True):
        assert 0 < result["low"] <= result["median"] <= result["high"]
        assert result["peak_memory_bytes"] > 1e8  # a process with a backend in it
        assert line.startswith(keras.config.backend()) and f"{result['median']:.1f}" in line
        assert result["first_piece_ms"] > 0 and result["between_pieces_ms"] > 0
        assert f"one every {result['between_pieces_ms']:.1f} ms" in line


@backend_independent
@pytest.mark.slow
@pytest.mark.parametrize("command", [["keras_rgemma.benchmarks"], ["keras_rgemma.cli", "bench"]])
def test_a_measurement_that_fails_is_named_and_fails_the_command(command):
    options = ["--size", "3b", "--backends", keras.config.backend(), "--measures", "prefill"]
    done = subprocess.run(
        [sys.executable, "-m", *command, *options],
        env={**os.environ, "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "3b" in done.stdout
    assert f"failed: prefill on {keras.config.backend()}" in done.stderr


@pytest.mark.slow
def test_few_programs_are_compiled_for_many_lengths():
    found = compiles.count()
    assert found == 0 if keras.config.backend() == "torch" else 2 < found <= 12


@backend_independent
@pytest.mark.slow
def test_loading_is_measured(tmp_path):
    command = [sys.executable, "-m", "keras_rgemma.benchmarks.load", "--preset", "rgemma_tiny_en"]
    done = subprocess.run(
        [*command, "--folder", str(tmp_path / "random"), "--backends", "torch"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (result,) = json.loads(done.stdout.strip().splitlines()[-1])
    assert result["model_bytes"] == 2 * 3_482_304
    assert min(result["seconds"], result["floor_seconds"], result["peak_bytes"]) > 0
    assert 0 <= result["token"] < 4096
    assert (tmp_path / "random" / "model.safetensors").exists()


@backend_independent
@pytest.mark.slow
def test_a_step_of_lora_is_measured(tmp_path):
    module = "keras_rgemma.benchmarks.finetune"
    command = [sys.executable, "-m", module, "--preset", "rgemma_tiny_en", "--steps", "1"]
    done = subprocess.run(
        [*command, "--folder", str(tmp_path / "random"), "--backends", "torch", "--lengths", "16"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(done.stdout.strip().splitlines()[-1])
    assert [result["variant"] for result in results] == list(finetune.VARIANTS)
    for result in results:
        assert min(result["seconds"], result["peak_bytes"]) > 0
        # In bfloat16 the logits are rounded where all of them are made.
        assert result["losses"] == pytest.approx(results[0]["losses"], rel=0.02)
        assert result["losses"][1] < result["losses"][0]


@backend_independent
@pytest.mark.slow
def test_peft_trains_the_same():
    script = pathlib.Path(__file__).parents[2] / "benchmarks" / "peers" / "lora_training.py"
    command = [sys.executable, str(script), "--size", "tiny", "--backends", "torch"]
    done = subprocess.run(
        [*command, "--rounds", "1", "--steps", "2"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (theirs,), (ours,) = json.loads(done.stdout.strip().splitlines()[-1]).values()
    assert min(theirs["tokens_per_s"], ours["tokens_per_s"]) > 0
    assert theirs["losses"][2] < theirs["losses"][0] - 0.05
    assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-4)
