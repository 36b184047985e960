"""A training step on a row that eight TPU chips share, as the TPU's own compiler makes it."""

import json
import math
import pathlib

import pytest
from compilers import run

from backend_independent import backend_independent

ROOT = pathlib.Path(__file__).parent.parent.parent
TOKENS, WIDTH, WINDOW, HEAD = 16_384, 128, 2048, 16


@pytest.mark.slow
@backend_independent
def test_a_step_with_lora_sends_states_and_windows_and_no_part_of_a_row():
    sizes = {"num_layers": 2, "block_types": ["recurrent", "attention"], "hidden_dim": WIDTH}
    sizes |= {"intermediate_dim": 3 * WIDTH, "lru_dim": WIDTH}
    settings = ["--sequence", "sequence", "--tokens", TOKENS, "--sizes", json.dumps(sizes)]
    done = run(ROOT / "benchmarks/tpu_mesh.py", *settings)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)["moved"]
    assert any(kind == "collective-permute" for kind, _ in found)
    for kind, shape in found:
        # Sums of gradients of LoRA; pads and documents of the row, a number a token.
        is_known = kind == "all-reduce" or math.prod(shape) <= TOKENS
        assert is_known or shape == [1, WINDOW, 1, HEAD], (kind, shape)
