"""Steps that are replayed on buffers of their own write what steps without graphs write.

Without a GPU a graph is the function itself: it reads and writes the same buffers. On a GPU the
graphs are real.
"""

import contextlib
import threading
from unittest import mock

import keras
import numpy as np
import pytest

import tiny
from laws import test_bound_step

if keras.config.backend() != "torch":
    pytest.skip("graphs are PyTorch's", allow_module_level=True)

import torch

from keras_rgemma.generation import torch as backend
from keras_rgemma.generation.torch import graphs
from keras_rgemma.generation.torch.constants import KeptConstants
from keras_rgemma.keras_internals.torch import WithoutHost

HAS_GPU = torch.cuda.is_available()
PROMPTS = [[3, 5, 7, 11, 13, 17, 19, 23, 29], [2, 4], [7]]
PROMPT = {"token_ids": np.array([[3, 5, 7, 11, 13, 17, 19]])}


@pytest.fixture
def recorded(monkeypatch):
    """Lists what was recorded; on a CPU each recording is the function itself."""
    functions = []

    def record(function, device, constants):
        with constants:
            function()
        with constants, WithoutHost():
            result = function()

        def replay():
            with constants:
                result.copy_(function())

        functions.append(function)
        return replay, result

    def record_on_gpu(function, *args):
        functions.append(function)
        return on_gpu(function, *args)

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


def test_a_thread_takes_over_the_buffers_of_one_that_has_ended(recorded):
    lm = test_bound_step.CASES["LoRA"]()
    lm.compile(sampler="greedy")
    for _ in range(3):
        thread = threading.Thread(target=written, args=(lm,))
        thread.start()
        thread.join()
    assert len(recorded) == 1


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


class Reads(test_bound_step.Doubled):
    """A user's wrapper that reads a number of a tensor, which a graph cannot."""

    def call(self, x):
        y = self.inner(x)
        return y if float(y.abs().max()) < 1e9 else 0 * y


def test_what_cannot_be_recorded_is_computed_all_the_same(recorded, monkeypatch):
    lm = test_bound_step.wrapped(Reads)
    lm.compile(sampler="greedy")
    expected = without_graphs(lm, monkeypatch, return_state=True)
    with pytest.warns(UserWarning, match="(?s)cannot be recorded as a CUDA graph.*reads numbers"):
        actual = written(lm, return_state=True)
    assert_same(actual, expected)
    # And nothing is left behind: neither a stream nor a generator that records.
    torch.rand(3, device=keras.ops.zeros(1).device).sum().item()


@pytest.mark.parametrize("message", ["", "not permitted\nand more"])
def test_a_recording_that_fails_is_told(recorded, monkeypatch, message):
    lm = test_bound_step.CASES["LoRA"]()
    lm.compile(sampler="greedy")
    expected = without_graphs(lm, monkeypatch, return_state=True)

    def record(function, device, constants):
        with constants:
            function()
        raise RuntimeError(message)

    monkeypatch.setattr(graphs, "record", record)
    reason = message or "RuntimeError"
    with pytest.warns(UserWarning, match=f"cannot be recorded as a CUDA graph.*{reason}"):
        actual = written(lm, return_state=True)
    assert_same(actual, expected)


@pytest.mark.skipif(HAS_GPU, reason="the real calls run here")
@pytest.mark.parametrize("constants", [None, KeptConstants()], ids=["none", "kept"])
def test_the_calls_of_a_recording(monkeypatch, constants):
    """Without a GPU at least the order of the calls: on the device, beside its own stream."""
    calls = []

    def logged(name):
        @contextlib.contextmanager
        def context(*args, **kwargs):
            calls.append(f"enter {name}")
            yield
            calls.append(f"exit {name}")

        return context

    cuda = mock.MagicMock()
    for name in ("device", "stream", "graph"):
        setattr(cuda, name, logged(name))
    monkeypatch.setattr(torch, "cuda", cuda)
    replay, result = graphs.record(lambda: calls.append("run") or 7, "cuda:1", constants)
    warm_up = ["run"] if constants is None else ["run", "run"]
    of_graph = ["enter graph", "run", "exit graph"]
    assert calls == [
        *("enter device", "enter stream", *warm_up, "exit stream"),
        *("enter stream", *of_graph, "exit stream", "exit device"),
    ]
    assert result == 7
    assert replay is cuda.CUDAGraph.return_value.replay
    assert not graphs._recording.locked()


def test_run_eagerly_uses_no_graph(recorded):
    lm = test_bound_step.CASES["LoRA"]()
    lm.compile(sampler="greedy", run_eagerly=True)
    written(lm)
    assert not recorded


def test_constants_are_told_apart():
    with KeptConstants():
        values = [1, 1.0, True, np.float64(1.0), np.float32(1.0), np.int32(1), [1.0], (1, 2)]
        tensors = [[torch.tensor(value) for value in values] for _ in range(2)]
        assert torch.as_tensor(1.0, dtype=torch.float64).dtype == torch.float64
        both = torch.tensor([tensors[0][0], 2])  # not of numbers alone
    for value, one, other in zip(values, *tensors, strict=True):
        assert one is other
        assert one.dtype == torch.tensor(value).dtype
        assert one.tolist() == torch.tensor(value).tolist()
    assert both.tolist() == [1, 2]


def test_a_constant_that_is_changed_is_no_constant():
    for context in (torch.no_grad, torch.inference_mode):
        with context(), KeptConstants():
            torch.tensor([0.5]).add_(1)
            with pytest.raises(RuntimeError, match=r"changed in place\. Make a new one"):
                torch.tensor([0.5])


@pytest.mark.parametrize("has_mask", (False, True))
@pytest.mark.parametrize("name", sorted(test_bound_step.CASES))
def test_a_step_copies_nothing_from_the_host_again(name, has_mask):
    lm = test_bound_step.CASES[name]()
    run = backend.compile_program(lambda model, *x: model.decoding.step(*x), lm, None, False)
    device = keras.ops.convert_to_tensor(0).device
    ids = torch.tensor([[3], [4]], dtype=torch.int32, device=device)
    mask = torch.tensor([[True], [False]], device=device) if has_mask else None
    constants, state = KeptConstants(), lm.initial_state(2)
    with torch.inference_mode(), constants:
        run(ids, mask, lm.initial_state(2), True)
    with torch.inference_mode(), WithoutHost(), constants:
        run(ids, mask, state, True)
