"""TPUs' own compiler takes the programs, and their collectives move no weight."""

import functools
import json
import math
import re

import for_tpu
import pytest
from compilers import run

from backend_independent import backend_independent
from keras_rgemma.checkpoints.names import weights
from keras_rgemma.config import RGemmaConfig
from keras_rgemma.distribution.devices import ENVIRONMENT

CONFIG = RGemmaConfig(**for_tpu.SIZES)
ROWS, TOKENS = for_tpu.ROWS, for_tpu.TOKENS


@functools.cache
def compiled():
    """What the compiler said of each program, by task, device, mesh and full sharding."""
    done = run(for_tpu.__file__, **ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    return {(x["case"][0], x["case"][1], x["case"][3]): x for x in found}


def arrays(program, *kinds):
    """The shapes that collectives of some kinds have sent, each as often as it was."""
    return [
        tuple(map(int, filter(None, shape.split(", "))))
        for x in program["collectives"]
        if x["kind"] in kinds
        for shape in re.findall(r"\[([\d, ]*)\]", x["arrays"]) * x["count"]
    ]


@pytest.mark.slow
@backend_independent
def test_the_compiler_takes_a_program_of_each_kind():
    assert len(compiled()) == len(list(for_tpu.jobs())) == 2 * len(for_tpu.TASKS) + 1
    for case, program in compiled().items():
        assert program["fits"], case
        assert program["flops"] > 0 and program["argument_bytes"] > 0, case


@pytest.mark.slow
@backend_independent
def test_one_chip_sends_nothing_and_holds_all_weights():
    whole = 2 * CONFIG.parameter_count
    for task in for_tpu.TASKS:
        program = compiled()[task, "v5e-1", False]
        assert program["collectives"] == [], task
        if task in ("prefill", "decode"):
            assert whole <= program["weight_bytes"] < 1.01 * whole + 500, task  # float32 decay


@pytest.mark.slow
@backend_independent
def test_no_step_on_eight_chips_moves_a_weight():
    matrices = {x.shape for x in weights(CONFIG) if len(x.shape) > 1}
    for task in for_tpu.TASKS:
        program = compiled()[task, "v5e-8", False]
        # The largest logit of each chip and its place, of each token of a chunk.
        places = {"prefill": [], "decode": [(ROWS, 1, 8)] * 2}
        gathered = arrays(program, "all-gather")
        assert gathered == places.get(task, [(ROWS, 1, ROWS * TOKENS)] * 2), task
        sums = arrays(program, "all-reduce")
        assert sums and not matrices & set(sums), task
        others = {x["kind"] for x in program["collectives"]} - {"all-gather", "all-reduce"}
        assert not others, task


@pytest.mark.slow
@backend_independent
def test_a_block_sums_its_two_outputs():
    sums = arrays(compiled()["prefill", "v5e-8", False], "all-reduce")
    # One for the embedding; a block's last sum is that of the next state, which needs none.
    block = (ROWS, TOKENS, CONFIG.hidden_dim)
    assert sums == [block] * (2 * CONFIG.num_layers - 1)


@pytest.mark.slow
@backend_independent
def test_a_fully_sharded_step_gathers_each_weight_at_most_once_a_pass():
    program = compiled()["train", "v5e-8", True]
    tokens = ROWS // 4 * TOKENS
    gathered = [x for x in arrays(program, "all-gather") if x[-1] != tokens]  # no largest logit
    over_model = {"V", "L", "M", "HK", "H"}
    needed = sum(
        math.prod(x.shape) / (2 if over_model & set(x.dimensions.split()) else 1)
        for x in weights(CONFIG)
        if len(x.shape) > 1
    )
    assert 0 < sum(map(math.prod, gathered)) <= 2 * needed  # forward and backward
