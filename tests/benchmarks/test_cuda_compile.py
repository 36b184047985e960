"""What was compiled for GPUs of NVIDIA holds: a kernel for the recurrence, and memory that fits."""

import json
import pathlib

from backend_independent import backend_independent

REPORT = pathlib.Path(__file__).parents[2] / "benchmarks" / "results" / "cuda_compile.json"
MEMORY = {"T4": 15.8e9, "A100": 42.4e9, "H100": 85e9}


@backend_independent
def test_what_was_compiled_holds():
    results = json.loads(REPORT.read_text(encoding="utf-8"))["results"]
    assert {x["gpu"] for x in results} == set(MEMORY)
    assert {x["work"] for x in results} == {"recurrence", "prefill", "decode", "train"}
    for x in results:
        needed = x["argument_bytes"] + x["temporary_bytes"]
        assert needed < MEMORY[x["gpu"]], x
        # XLA has Triton since Ampere: then the recurrence and its gradient are a kernel each.
        if x["work"] == "recurrence":
            assert x["triton"] == (0 if x["gpu"] == "T4" else 2), x
