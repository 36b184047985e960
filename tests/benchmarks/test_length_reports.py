"""Reports of length and latency have their tables and plots. No test asserts a speed."""

import json
import re

import benchmark_scripts
import pytest

from backend_independent import backend_independent

pytestmark = backend_independent


@pytest.fixture(scope="module")
def scripts():
    with benchmark_scripts.importable() as module:
        yield module


def point(measure, package, length, seconds, rows=1, **more):
    """A point of a report on JAX, of as many tokens as its length."""
    return {
        **{"measure": measure, "package": package, "backend": "jax", "length": length},
        **{"rows": rows, "tokens": rows * length, "seconds": seconds, "parameters": 10},
        **{"held_bytes": 1e6 * length, "peak_bytes": 3e6 * length, **more},
    }


def report(points, **more):
    return {
        "command": "python benchmarks/a_script.py",
        "machine": {"cpus": 2, "processor": "x86_64"},
        "versions": {"keras": "3", "torch": None, "commit": "abc"},
        "ceilings": {"matmul_gflops": 100.0, "read_gb_per_s": 8e-6},
        **{
            "rounds": 1,
            "repeats": 3,
            "memory": 12.0,
            "points": points,
            "stopped": [],
            "errors": [],
        },
        **more,
    }


def cells(page, *first):
    """The rest of the first row of a page's tables that begins with these cells."""
    start = f"| {' | '.join(first)} | "
    return next(x for x in page.splitlines() if x.startswith(start))[len(start) : -2].split(" | ")


def test_a_page_of_lengths_has_rates_and_exponents(scripts, tmp_path):
    length = scripts("length")
    points = [point("decode", "keras-rgemma", n, n / 50, held_bytes=2e6) for n in (10, 100, 1000)]
    points += [point("decode", "Gemma", n, n / rate) for n, rate in ((10, 40), (100, 10))]
    points += [point("train", "keras-rgemma", n, 0.002 * n) for n in (512, 1024, 2048)]
    points += [point("train", "Gemma", n, 1e-6 * n**2) for n in (512, 1024)]
    stopped = [
        {"measure": "train", "package": "Gemma", "backend": "jax", "length": 2048, "rows": 1}
    ]
    found = report(points, stopped=stopped)
    page = length.page(found)
    assert "allows 200 at best" in page
    assert cells(page, "RecurrentGemma", "JAX") == ["50", "50", "50", "100%"]
    assert cells(page, "Gemma (KerasHub)", "JAX") == ["40", "10", "-", "25%"]
    assert cells(page, "RecurrentGemma", "2") == ["2", "2"]  # megabytes of the state
    assert cells(page, "Gemma (KerasHub)", "10") == ["100", "-"]
    steps = page[page.index("## A training step") :]
    assert cells(steps, "RecurrentGemma", "JAX") == ["2", "2", "2", "1.00"]
    assert cells(steps, "Gemma (KerasHub)", "JAX") == ["0.512", "1.02", "> 12 GB", "2.00"]
    pictures = length.figures(found)
    assert {name: len(panels) for name, panels in pictures.items()} == {"decode": 2, "time": 2}


def test_a_page_of_latency_has_savings_and_batches(scripts):
    latency = scripts("latency")
    points = [point("latency", "keras-rgemma", n, 0.02 * n) for n in (16, 32)]
    points += [point("latency", "Gemma", n, 0.025 * n) for n in (16, 32)]
    points += [point("throughput", "keras-rgemma", 16, s, rows) for rows, s in ((1, 1), (4, 2))]
    points += [point("throughput", "Gemma", 16, s, rows) for rows, s in ((1, 1), (4, 8))]
    scales = {name: {"scale": 0.125, "prompt": 512} for name in ("latency", "throughput")}
    found = report(points, scales=scales, rows=[1, 4], new_tokens=16, size="110m")
    page = latency.page(found)
    assert cells(page, "RecurrentGemma", "JAX") == ["0.32", "0.64"]
    assert cells(page, "time saved", "JAX") == ["20%", "20%"]
    batches = page[page.index("## Throughput") :]
    assert cells(batches, "RecurrentGemma", "JAX") == ["32 (4)"]
    assert cells(batches, "Gemma (KerasHub)", "JAX") == ["16 (1)"]
    (panels,) = latency.figures(found).values()
    assert panels[1].notes == {(16, 32.0): "4 rows", (16, 16.0): "1 row"}


def test_points_of_several_rounds_are_one(scripts):
    merged = scripts("reports").merged
    rounds = [
        {"parameters": 7, "results": [point("decode", "Gemma", 10, s, peak_bytes=p)]}
        for s, p in (([3.0], 5), ([1.0, 2.0], 9))
    ]
    (found,) = merged([*rounds, {"error": "killed"}])
    assert [found[name] for name in ("seconds", "low", "high", "calls")] == [2.0, 1.0, 3.0, 3]
    assert found["peak_bytes"] == 9
    assert rounds[0]["results"][0]["seconds"] == [3.0]  # what was measured stays as it is


@pytest.mark.slow
def test_length_is_measured_written_and_drawn(tmp_path):
    options = ["--measures", "decode", "--size", "tiny", "--lengths", "9", "70", "--rounds", "1"]
    options += ["--repeats", "1", "--new-tokens", "4", "--backends", "torch"]
    options += ["--folder", tmp_path, "--write", "tiny"]
    printed, found = benchmark_scripts.run("length.py", *options)
    assert found == json.loads((tmp_path / "results" / "tiny.json").read_text())
    assert {(x["package"], x["length"]) for x in found["points"]} == {
        (package, length) for package in ("keras-rgemma", "Gemma") for length in (9, 70)
    }
    assert found["stopped"] == found["errors"] == []
    page = (tmp_path / "tiny.md").read_text()
    assert page in printed and found["command"] in page
    assert float(cells(page, "RecurrentGemma", "PyTorch")[0]) > 0
    benchmark_scripts.call("length.py", "--plot", "tiny", "--folder", tmp_path)
    text = (tmp_path / "plots" / "tiny_decode.svg").read_text()
    for label in ("RecurrentGemma", "Gemma (KerasHub)", "PyTorch", "tokens a second", "GB"):
        assert re.search(f">[^<]*{re.escape(label)}", text), label


@pytest.mark.slow
def test_latency_is_measured_and_written(tmp_path):
    options = ["--size", "tiny", "--scale", "0.0001", "--backends", "torch", "--rounds", "1"]
    options += ["--repeats", "1", "--rows", "1", "2", "--folder", tmp_path, "--write", "tiny"]
    _, found = benchmark_scripts.run("latency.py", *options)
    measured = {(x["measure"], x["package"], x["length"], x["rows"]) for x in found["points"]}
    assert measured == {
        (measure, package, length, rows)
        for package in ("keras-rgemma", "Gemma")
        for measure, length, rows in (
            *(("latency", 1, 1), ("latency", 2, 1)),
            *(("throughput", 1, 1), ("throughput", 1, 2)),
        )
    }
    page = (tmp_path / "tiny.md").read_text()
    assert all(cell.endswith("%") for cell in cells(page, "time saved", "PyTorch"))


@pytest.mark.slow
def test_two_processes_write_at_once(tmp_path):
    options = ["--size", "tiny", "--seconds", "0.5", "--rounds", "1", "--folder", tmp_path]
    printed, found = benchmark_scripts.run("side_by_side.py", *options, "--write", "two")
    assert found == json.loads((tmp_path / "results" / "two.json").read_text())
    assert (tmp_path / "two.md").read_text() in printed
    ((alone,), (together,)) = found["results"]["torch"].values()
    assert len(together) == 2 and min(alone, *together) > 0


def test_the_slower_of_two_processes_counts(scripts):
    script = scripts("side_by_side")
    result = {"alone": [10.0, 20.0, 30.0], "together": [[9.0, 3.0], [8.0, 9.0], [6.0, 30.0]]}
    assert script.cells(result) == ["20.0", "6.0 and 9.0", "0.30 (below the floor)", "1.20"]
