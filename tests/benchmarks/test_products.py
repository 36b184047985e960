"""Forms of a product are measured. How fast they are, no test asserts."""

import json
import pathlib
import subprocess
import sys

from backend_independent import backend_independent

FOLDER = pathlib.Path(__file__).parents[2] / "benchmarks"


def run(script, *arguments):
    """Returns what a script prints, and the results in its last line."""
    command = [sys.executable, str(FOLDER / script), *arguments, "--repeats", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads(done.stdout.strip().splitlines()[-1])["results"]


@backend_independent
def test_every_form_is_measured_on_jax():
    page, results = run("products.py", "--sizes", "tiny", "--rows", "1", "3")
    assert {(x["rows"], x["form"]) for x in results} == {
        *((1, "as it is"), (1, "two rows"), (1, "on the left")),
        *((3, "as it is"), (3, "on the left")),
    }
    for result in results:
        assert min(result["ms"], result["gb_per_s"]) > 0
        assert f"| {result['dtype']} | " in page


@backend_independent
def test_every_implementation_is_measured_on_pytorch():
    arguments = "--sizes", "tiny", "--rows", "1", "3", "--gigabytes", "0.0001"
    page, results = run("products_torch.py", *arguments)
    assert len(results) == 8
    for result in results:
        assert min(result["gb_per_s"].values()) > 0
        assert f"| {result['dtype']} | {result['rows']} | " in page
