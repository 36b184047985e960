"""On PyTorch a token is computed with the threads for which the process gets processors."""

import threading

import keras
import keras_hub
import pytest

import tiny

if keras.backend.backend() != "torch":
    pytest.skip("PyTorch alone has threads that wait for each other", allow_module_level=True)

import torch

from keras_rgemma.generation.torch import compile_program
from keras_rgemma.generation.torch import threads as module
from keras_rgemma.generation.torch.threads import Threads


@pytest.fixture(autouse=True)
def four_threads(monkeypatch):
    # Without those that other tests have left.
    monkeypatch.setattr(module.threading, "enumerate", lambda: [threading.main_thread()])
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    assert torch.get_num_threads() == 4
    torch.set_num_threads(before)


@pytest.fixture
def processor(monkeypatch):
    """Replaces the clocks: a block takes 0.03 s, and the caller runs for a share of them."""

    class Processor:
        now = running = 0.0

        def blocks(self, threads, number, share):
            counts = []
            for _ in range(number):
                with threads.chosen():
                    counts.append(torch.get_num_threads())
                    self.now += 0.03
                    self.running += 0.03 * share
            return counts

    processor = Processor()
    monkeypatch.setattr(module.time, "perf_counter", lambda: processor.now)
    monkeypatch.setattr(module.time, "thread_time", lambda: processor.running)
    return processor


def test_alone_it_uses_all_threads(processor):
    assert set(processor.blocks(Threads(), 100, share=0.95)) == {4}


@pytest.mark.parametrize("share, count", [(0.7, 2), (0.5, 2), (0.3, 1), (0.05, 1)])
def test_beside_others_it_uses_fewer_and_tries_all_again(processor, share, count):
    threads = Threads()
    assert processor.blocks(threads, 4, share) == [4] * 4
    assert processor.blocks(threads, 40, share=1.0) == [count] * 40
    assert set(processor.blocks(threads, 100, share=1.0)) == {4}


def test_a_caller_may_change_the_setting_meanwhile(processor):
    threads = Threads()
    processor.blocks(threads, 4, share=0.5)
    torch.set_num_threads(1)
    assert set(processor.blocks(threads, 10, share=1.0)) == {1}
    torch.set_num_threads(4)


def test_the_setting_comes_back(processor):
    threads = Threads()
    processor.blocks(threads, 4, share=0.5)
    with pytest.raises(KeyboardInterrupt), threads.chosen():
        assert torch.get_num_threads() == 2
        raise KeyboardInterrupt


def test_generate_leaves_the_setting(monkeypatch):
    seen, running = [], module.time.thread_time
    monkeypatch.setattr(module, "_PERIOD", 0.0)
    monkeypatch.setattr(module.time, "thread_time", lambda: running() / 2)

    class Sampler(keras_hub.samplers.GreedySampler):
        def get_next_token(self, probabilities):
            seen.append(torch.get_num_threads())
            return super().get_next_token(probabilities)

    lm = tiny.causal_lm()
    lm.compile(sampler=Sampler())
    lm.generate({"token_ids": [[2, 5, 7]]}, max_new_tokens=4, stop_token_ids=None)
    assert seen[0] == 4 and min(seen) in (1, 2)
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize("daemon", [False, True])
def test_beside_threads_of_the_program_the_setting_stays(processor, daemon, monkeypatch):
    threads, other = Threads(), threading.Thread(daemon=daemon)
    monkeypatch.setattr(module.threading, "enumerate", lambda: [threading.main_thread(), other])
    processor.blocks(threads, 4, share=0.5)
    assert set(processor.blocks(threads, 10, share=1.0)) == {2 if daemon else 4}


def test_other_threads_than_the_main_one_keep_the_setting(processor):
    threads, counts = Threads(), []
    processor.blocks(threads, 4, share=0.5)
    run = threading.Thread(target=lambda: counts.extend(processor.blocks(threads, 10, share=0.5)))
    run.start()
    run.join()
    assert len(set(counts)) == 1


def test_compiled_steps_keep_the_setting():
    lm = tiny.causal_lm()
    lm.compile(jit_compile=True)
    contexts = []
    function = lambda model, *_: contexts.append(model.decoding.context)  # noqa: E731
    compile_program(function, lm, None, jit_compile=True)()
    compile_program(function, lm, None, jit_compile=False)()
    compiled, uncompiled = contexts
    assert compiled is torch.no_grad and uncompiled is not torch.no_grad
