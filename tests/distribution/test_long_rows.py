"""A row that is divided over time among eight devices is computed as on one."""

import math

import keras
import long_rows
import pytest
from processes import results_of

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "jax", reason="keras.distribution is for JAX"
)


def results(scenario):
    return results_of(long_rows.__file__, scenario)


def test_operations_and_their_gradients_equal_those_of_one_device():
    found = results("operations")
    assert len(found) == 19
    for case, (outputs, gradients) in found.items():
        # Sums of float32 in another order.
        assert outputs < 1e-5 and gradients < 1e-5, case


@pytest.mark.slow
def test_training_equals_that_of_one_device():
    assert len(results("training")) == len(long_rows.TRAINED)
    for result in results("training"):
        assert result["losses"] < 1e-5 and result["weights"] < 1e-5, result["case"]
        assert result["weights"] < result["changes"] / 100, result["case"]  # all have moved


def test_a_long_row_equals_that_of_one_device_in_an_eighth_of_its_memory():
    found = results("long")
    assert max(found[name] for name in ("losses", "hidden", "gradients")) < 1e-5
    assert found["largest"] > 0.1  # of the gradients
    assert found["share"] < 1 / 6


def test_devices_send_states_and_windows_and_no_part_of_a_row():
    length, window = long_rows.TOKENS, long_rows.LONG["sliding_window_size"]
    sizes = long_rows.LONG
    largest = max(window * sizes["head_dim"], 8 * sizes["lru_dim"])
    for kind, shape in results("long")["moves"]:
        # Sums of gradients of weights; pads and documents of the whole row, a number a token.
        is_known = kind == "all-reduce" or shape == [1, length]
        assert is_known or math.prod(shape) <= largest, (kind, shape)


def test_states_and_scores_equal_those_of_one_device():
    found = results("states")
    differences = {name: value for name, value in found.items() if isinstance(value, float)}
    assert len(differences) == 4
    for name, value in differences.items():
        assert value < 5e-5, name  # logits reach 30


@pytest.mark.parametrize(
    "name, words",
    [
        ("fit", ("'sequence'", "8 devices", "rows of 43 tokens", "`sequence_length=48`")),
        ("no axis", ("sequence_parallel_dim_name='time'", "('batch', 'model', 'sequence')")),
        ("axis of rows", ("'batch' for both", "(1, 1, 8)")),
    ],
)
def test_bad_input_is_named_with_the_way_out(name, words):
    message = results("states")[name]
    assert all(word in message for word in words), message
