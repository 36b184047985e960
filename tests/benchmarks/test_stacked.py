"""A loop over stacked layers computes what the layers compute one after another."""

import os
from unittest import mock

import benchmark_scripts
import keras
import numpy as np
import pytest

import tiny
from backend_independent import backend_independent

of_jax = pytest.mark.skipif(keras.config.backend() != "jax", reason="programs of JAX")


@pytest.fixture(scope="module")
def script():
    # The scripts set the backend and the platform for the process.
    with mock.patch.dict(os.environ), benchmark_scripts.importable() as module:
        yield module


@pytest.fixture(scope="module")
def forms(script):
    return script("stacked_forms")


@pytest.fixture(scope="module")
def backbone():
    # Two groups of three layers, and two layers behind.
    cycle = ("recurrent", "recurrent", "attention")
    model = tiny.backbone(num_layers=8, block_types=cycle)
    model.enable_lora(2)
    return tiny.randomize(model)


def outputs(forms, backbone, form, work, *arguments):
    """What a program gives, with its states and gradients stacked."""
    import jax

    program, _ = forms.WORK[work](backbone, form, arguments[0].shape[1])
    values = [x.value for x in backbone.variables]
    found = jax.jit(program)(*forms.lay_out(backbone, form, values, arguments))
    return forms.without_form(found, form)


def leaves(tree):
    import jax

    return jax.tree.leaves(tree)  # without the places of weights that are not trained


def check(found, expected):
    found, expected = map(leaves, (found, expected))
    assert len(found) == len(expected) > 1
    for one, other in zip(found, expected, strict=True):
        # Float32 sums in another order.
        np.testing.assert_allclose(tiny.numpy(one), tiny.numpy(other), rtol=1e-3, atol=1e-5)


@of_jax
@pytest.mark.parametrize("form", ["layer by layer", "functions", "scan"])
def test_a_prompt_is_read_as_by_the_package(forms, backbone, form):
    row = [x[:1] for x in tiny.arrays(length=7).values()]
    state = backbone.initial_state(1)
    _, expected = backbone.step(*row, state)
    expected = expected._replace(layers=forms.stacked(forms.by_layers(backbone, expected.layers)))
    check(outputs(forms, backbone, form, "prefill", *row, state), expected)


@of_jax
@pytest.mark.slow
def test_gradients_are_equal(forms, backbone):
    row = [x[:1] for x in tiny.arrays(length=7).values()]
    expected = outputs(forms, backbone, "layer by layer", "train", *row)
    loss, gradients = outputs(forms, backbone, "scan", "train", *row)
    check((loss, gradients), expected)
    # A and B of eight layers' matrices, the groups' stacked.
    assert all(np.abs(tiny.numpy(x)).max() > 0 for x in leaves(gradients))


@backend_independent
@pytest.mark.slow
def test_every_form_runs():
    options = ("--device", "cpu", "--size", "tiny", "--layers", 8, "--tokens", 16)
    page, report = benchmark_scripts.run(
        "stacked.py", *options, "--work", "decode loop", "--rounds", 1, "--repeats", 1
    )
    assert [x["form"] for x in report["results"]] == ["layer by layer", "scan"]
    assert all(x["seconds"] > 0 and x["difference"] < 1e-3 for x in report["results"])
    assert page.count("| decode loop | 8 |") == 2


PROGRAM = """HloModule jit_program

%length.1 (x.1: (s32[], f32[8])) -> pred[] {
  %last.1 = s32[]{:T(128)} constant(8)
}

%turn.1 (x.2: (s32[], f32[8])) -> (s32[], f32[8]) {
  %a.1 = f32[8]{0} fusion(%x.2), backend_config={"estimated_cycles":"30"}
}

ENTRY %main.1 (x.3: f32[8]) -> f32[8] {
  %b.1 = f32[8]{0} fusion(%x.3), backend_config={"estimated_cycles":"5"}
  %loop.1 = (s32[], f32[8]{0}) while(%b.1), condition=%length.1, body=%turn.1
}
"""


@of_jax
def test_a_turn_of_a_loop_counts_as_often_as_it_runs(script):
    assert script("tpu").estimated_cycles(PROGRAM) == 5 + 8 * 30
