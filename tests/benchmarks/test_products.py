"""Forms of a product are measured on JAX. How fast they are, no test asserts."""

import json
import pathlib
import subprocess
import sys

from backend_independent import backend_independent

SCRIPT = pathlib.Path(__file__).parents[2] / "benchmarks" / "products.py"


@backend_independent
def test_every_form_is_measured():
    command = [sys.executable, str(SCRIPT), "--size", "tiny", "--rows", "1", "3", "--repeats", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(done.stdout.strip().splitlines()[-1])["results"]
    assert {(x["rows"], x["form"]) for x in results} == {
        *((1, "as it is"), (1, "two rows"), (3, "as it is")),
    }
    for result in results:
        assert min(result["ms"], result["gb_per_s"]) > 0
        assert f"| {result['dtype']} | " in done.stdout
