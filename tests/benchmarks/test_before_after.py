"""Two checkouts are compared: here this one with itself. How fast it is, no test asserts."""

import json
import os
import pathlib
import subprocess
import sys

import keras
import pytest

from backend_independent import backend_independent

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "before_after.py"


def compare(before, *options):
    command = [sys.executable, str(SCRIPT), str(before), "--size", "tiny", "--rounds", "1"]
    command += ["--repeats", "1", "--preset-tokens", "2", "--requests", "2", *options]
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@backend_independent
@pytest.mark.slow
def test_a_checkout_is_compared_with_itself(tmp_path):
    backend, measures = keras.config.backend(), ["preset LoRA", "stream", "compiles"]
    options = ["--backends", backend, "--measures", *measures]
    done = compare(ROOT, *options, "--write", "same", "--folder", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout.strip().splitlines()[-1])
    assert report == json.loads((tmp_path / "results" / "same.json").read_text())
    numbers = {(result["measure"], result["number"]): result for result in report["results"]}
    assert list(dict.fromkeys(measure for measure, _ in numbers)) == measures
    page = (tmp_path / "same.md").read_text()
    assert report["runs"][0]["command"] in page
    for (measure, number), result in numbers.items():
        assert f"| {backend} | {measure} | {number} | {result['before'][0]:.4g} |" in page
        if number != "programs":
            assert min(result["before"][0], result["after"][0]) > 0
    programs = numbers["compiles", "programs"]
    assert programs["before"] == programs["after"] == [0]  # PyTorch compiles nothing


@backend_independent
@pytest.mark.slow
def test_a_table_is_made_in_several_runs(tmp_path):
    (tmp_path / "keras_rgemma").mkdir()
    (tmp_path / "keras_rgemma" / "__init__.py").write_text("raise ImportError('broken checkout')")
    options = ["--backends", "torch", "--write", "parts", "--folder", str(tmp_path)]
    for measure in ("fit", "stream", "fit"):
        compare(tmp_path, *options, "--measures", measure)
    path = tmp_path / "results" / "parts.json"
    report = json.loads(path.read_text())
    assert sorted(result["measure"] for result in report["results"]) == ["fit", "stream"]
    assert len(report["runs"]) == 2
    path.write_text(json.dumps({**report, "size": "2b"}))
    done = compare(tmp_path, *options, "--measures", "fit")
    assert done.returncode != 0 and "has size '2b', and this run 'tiny'" in done.stderr


@backend_independent
@pytest.mark.slow
def test_a_measure_that_fails_is_named_and_stops_no_other(tmp_path):
    # A checkout from which nothing can be measured: every measure says so.
    (tmp_path / "keras_rgemma").mkdir()
    (tmp_path / "keras_rgemma" / "__init__.py").write_text("raise ImportError('broken checkout')")
    done = compare(tmp_path, "--backends", "torch", "--measures", "fit", "stream")
    assert done.returncode == 1
    results = json.loads(done.stdout.strip().splitlines()[-1])["results"]
    assert [result["measure"] for result in results] == ["fit", "stream"]
    assert all("before: " in x["error"] and "broken checkout" in x["error"] for x in results)


@backend_independent
@pytest.mark.slow
def test_a_folder_that_is_no_checkout_is_refused(tmp_path):
    done = compare(tmp_path)
    assert done.returncode == 2
    assert "no checkout of the project" in done.stderr
