"""Steps that are replayed on buffers of their own write what steps without graphs write.

Without a GPU a graph is the function itself: it reads and writes the same buffers. On a GPU the
graphs are real.
"""

import threading

import keras
import numpy as np
import pytest

import tiny
from laws import test_bound_step

if keras.config.backend() != "torch":
    pytest.skip("graphs are PyTorch's", allow_module_level=True)

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from keras_rgemma.generation import torch as backend
from keras_rgemma.generation.torch import graphs
from keras_rgemma.generation.torch.constants import KeptConstants

HAS_GPU = torch.cuda.is_available()
PROMPTS = [[3, 5, 7, 11, 13, 17, 19, 23, 29], [2, 4], [7]]
PROMPT = {"token_ids": np.array([[3, 5, 7, 11, 13, 17, 19]])}


@pytest.fixture
def recorded(monkeypatch):
    """Lists what was recorded; on a CPU each recording is the function itself."""
    functions = []

    def record(function, context):
        with context:
            result = function()

        def replay():
            with context:
                result.copy_(function())

        functions.append(function)
        return replay, result

    def record_on_gpu(function, context):
        functions.append(function)
        return on_gpu(function, context)

    on_gpu = graphs.record
    monkeypatch.setattr(graphs, "record", record_on_gpu if HAS_GPU else record)
    monkeypatch.setattr(graphs, "can_record", lambda tensor: True)
    monkeypatch.setattr(backend, "default_device", lambda: "cuda")
    return functions


def written(lm, prompts=PROMPT, limit=12, **kwargs):
    return lm.generate(prompts, max_new_tokens=limit, stop_token_ids=(5, 9), **kwargs)


def without_graphs(lm, monkeypatch, *args, **kwargs):
    with monkeypatch.context() as patch:
        patch.setattr(graphs, "can_record", lambda tensor: False)
        return written(lm, *args, **kwargs)


def assert_same(one, other):
    for x, y in zip(*map(keras.tree.flatten, (one, other)), strict=True):
        np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (x, y)))


@pytest.mark.parametrize("name", sorted(test_bound_step.CASES))
def test_a_replayed_step_writes_the_same(recorded, monkeypatch, name):
    lm = test_bound_step.CASES[name]()
    lm.compile(sampler="greedy")
    rows = {"token_ids": np.array([[3, 5, 7, 11], [2, 4, 8, 6], [9, 7, 3, 1]])}
    expected = [
        without_graphs(lm, monkeypatch, prompts, return_state=True) for prompts in (PROMPT, rows)
    ]
    assert not recorded
    actual = [written(lm, prompts, return_state=True) for prompts in (PROMPT, rows)]
    assert recorded
    assert_same(actual, expected)


def test_few_graphs_are_recorded(recorded):
    lm = test_bound_step.CASES["LoRA"]()
    lm.compile(sampler="greedy")
    for limit in (3, 12, 40):
        written(lm, limit=limit)
    assert len(recorded) == 1
    list(lm.stream(PROMPT, max_new_tokens=5, stop_token_ids=None))
    assert len(recorded) == 1


def test_buffers_of_few_numbers_of_rows_are_kept(recorded, monkeypatch):
    lm = test_bound_step.CASES["LoRA"]()
    lm.compile(sampler="greedy")
    for rows in (1, 2, 3, 4, 5, 6, 1):
        prompts = {"token_ids": np.arange(3, 3 + 4 * rows).reshape(rows, 4)}
        actual = written(lm, prompts, return_state=True)
        assert_same(actual, without_graphs(lm, monkeypatch, prompts, return_state=True))


def test_a_state_that_was_returned_stays(recorded):
    lm = test_bound_step.CASES["LoRA"]()
    lm.compile(sampler="greedy")
    _, state = written(lm, return_state=True)
    before = [np.array(tiny.numpy(x)) for x in keras.tree.flatten(state)]
    written(lm, {"token_ids": np.array([[8, 6, 4, 2]])})
    assert_same(state, before)


def test_two_streams_do_not_mix(recorded, monkeypatch):
    lm = test_bound_step.CASES["LoRA"]()
    lm.compile(sampler="greedy")
    prompts = [{"token_ids": np.array([row])} for row in ([3, 5, 7, 11], [2, 4, 8, 6])]
    expected = [without_graphs(lm, monkeypatch, x)["token_ids"][0, 4:16] for x in prompts]
    streams = [lm.stream(x, max_new_tokens=12, stop_token_ids=(5, 9)) for x in prompts]
    actual = [[], []]
    for pair in zip(*streams, strict=False):
        for row, ids in zip(actual, pair, strict=True):
            row.extend(np.ravel(ids["token_ids"]))
    for row, ids in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(row, ids[: len(row)])


def test_threads_have_buffers_of_their_own(recorded, monkeypatch):
    lm = test_bound_step.CASES["LoRA"]()
    lm.compile(sampler="greedy")
    prompts = [{"token_ids": np.array([[3 + n, 5, 7 + n, 11]])} for n in range(3)]
    expected = [without_graphs(lm, monkeypatch, x, 40) for x in prompts]
    actual = [None] * 3

    def run(n):
        actual[n] = written(lm, prompts[n], 40)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_same(actual, expected)
    assert len(recorded) == 3


def test_weights_that_change_show(recorded, monkeypatch):
    lm = test_bound_step.CASES["LoRA"]()
    lm.compile(sampler="greedy")
    before = written(lm)
    weight = lm.backbone.token_embedding.embeddings
    weight.assign(-tiny.numpy(weight))
    after = written(lm)
    assert_same(after, without_graphs(lm, monkeypatch))
    assert any((np.array(before[x]) != after[x]).any() for x in before)


def test_what_cannot_be_recorded_is_computed_all_the_same(recorded, monkeypatch):
    lm = test_bound_step.CASES["LoRA"]()
    lm.compile(sampler="greedy")
    expected = without_graphs(lm, monkeypatch, return_state=True)

    def record(function, context):
        with context:
            function()
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(graphs, "record", record)
    with pytest.warns(UserWarning, match="cannot be recorded as a CUDA graph.*not permitted"):
        actual = written(lm, return_state=True)
    assert_same(actual, expected)


def test_run_eagerly_uses_no_graph(recorded):
    lm = test_bound_step.CASES["LoRA"]()
    lm.compile(sampler="greedy", run_eagerly=True)
    written(lm)
    assert not recorded


class Copies(TorchDispatchMode):
    """Counts the tensors that are made of numbers, or whose numbers are read."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        if "lift_fresh" in name or "local_scalar" in name or "nonzero" in name:
            self.names.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("has_mask", (False, True))
@pytest.mark.parametrize("name", sorted(test_bound_step.CASES))
def test_a_step_copies_nothing_from_the_host_again(name, has_mask):
    lm = test_bound_step.CASES[name]()
    run = backend.compile_program(lambda model, *x: model.decoding.step(*x), lm, None, False)
    device = keras.ops.convert_to_tensor(0).device
    ids = torch.tensor([[3], [4]], dtype=torch.int32, device=device)
    mask = torch.tensor([[True], [False]], device=device) if has_mask else None
    constants = KeptConstants()
    with torch.inference_mode(), constants:
        run(ids, mask, lm.initial_state(2), True)
    with torch.inference_mode(), Copies() as copies, constants:
        run(ids, mask, lm.initial_state(2), True)
    assert copies.names == []
