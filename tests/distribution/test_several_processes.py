"""Processes that share no memory train and write as one process does."""

import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import two_processes

import keras_rgemma
import tiny

pytestmark = [
    pytest.mark.skipif(keras.config.backend() != "jax", reason="keras.distribution is for JAX"),
    pytest.mark.slow,
]
TESTS = pathlib.Path(__file__).parent.parent
EXAMPLE = TESTS.parent / "examples" / "several_processes.py"
# Losses are sums of float32 in another order, and so is all that is computed from them.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def free_port():
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def start(scenario, folder, count=2, devices=1):
    """Starts processes that know each other, each with a scenario of `two_processes.py`."""
    address = f"127.0.0.1:{free_port()}"
    command = [two_processes.__file__, scenario, address, str(count)]
    return started([[*command, str(number), str(folder)] for number in range(count)], devices)


def started(commands, devices=1, folder=None):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    paths = os.pathsep.join(map(str, (TESTS, TESTS.parent)))
    env = {**os.environ, "PYTHONPATH": paths, "XLA_FLAGS": flags}
    settings = {"env": env, "cwd": folder, "text": True}
    settings |= dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    return [subprocess.Popen([sys.executable, *command], **settings) for command in commands]


def ended(processes, timeout=240):
    """The last lines that processes print, of JSON."""
    return [json.loads(line) for line in last_lines(processes, timeout)]


def last_lines(processes, timeout=240):
    try:
        outputs = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return [output.splitlines()[-1] for output, _ in outputs]


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The results of two processes, and the folder with what they wrote."""
    folder = tmp_path_factory.mktemp("together")
    return ended(start("together", folder)), folder


@pytest.fixture(scope="module")
def alone():
    """The model of one process with one device, before and after it has learned."""
    before, lm = two_processes.made(), two_processes.made()
    return before, lm, two_processes.learned(lm)


@pytest.mark.parametrize("mesh", ["rows", "weights"])
def test_losses_are_those_of_one_process(mesh, alone, together):
    _, lm, expected = alone
    for result in together[0]:
        for form, losses in expected.items():
            np.testing.assert_allclose(result[mesh]["learned"][form], losses, **CLOSE)
        np.testing.assert_allclose(result[mesh]["score"], two_processes.score(lm), rtol=1e-4)


def test_what_was_saved_is_what_was_learned(alone, together):
    (_, lm, _), (results, folder) = alone, together
    for result in results:
        np.testing.assert_allclose(result["again"], 3 * [result["weights"]["score"]], rtol=1e-5)
    one = two_processes.made()
    one.load_weights(folder / "lm.weights.h5")
    for ours, theirs in zip(one.weights, lm.weights, strict=True):
        np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), **CLOSE)
    path = str(folder / "transformers")
    rounded = keras_rgemma.RGemmaCausalLM.from_preset(path, quantize="int8")
    for result in results:
        expected = two_processes.score(rounded)
        np.testing.assert_allclose(result["rounded"], expected, rtol=1e-4)
    assert not [path for path in folder.iterdir() if "partial" in path.name]


def test_texts_and_states_are_those_of_one_process(alone, together):
    (before, *_), (results, folder) = alone, together
    expected = two_processes.written(before)
    assert [result["written"] for result in results] == [expected, expected]
    state = keras_rgemma.RGemmaState.load(folder / "state.rgstate")
    assert before.generate("", state=state, max_new_tokens=5) == expected["state"]


def test_each_process_may_bring_its_own_rows(alone, together):
    for result in together[0]:
        np.testing.assert_allclose(result["own"], alone[2]["texts"], **CLOSE)


def test_the_order_of_shuffled_texts_is_the_same_in_all_processes(together):
    (one, two), _ = together
    assert one["shuffled"] == two["shuffled"]


@pytest.mark.parametrize(
    "name, words",
    [
        ("predict", ("RuntimeError", "2 processes", "`score`")),
        ("split", ("ValueError", "`validation_data`")),
        ("other data", ("ValueError", "different first batches", "`auto_shard_dataset=False`")),
        ("rows", ("3 rows", "'batch'")),
        ("no distribution", ("RuntimeError", "2 processes", "set_distribution")),
    ],
)
def test_what_cannot_be_done_together_is_refused(name, words, together):
    for result in together[0]:
        message = result["errors"][name]
        assert all(word in message for word in words), message


def test_training_goes_on_after_a_process_was_killed(tmp_path):
    processes = start("broken", tmp_path)
    began = time.monotonic()
    outputs = [process.communicate(timeout=240)[1] for process in reversed(processes)]
    assert processes[0].returncode != 0, outputs
    assert "process" in outputs[1].lower() or "connection" in outputs[1].lower(), outputs[1]
    assert time.monotonic() - began < 120
    (result,) = ended(start("resumed", tmp_path, count=1, devices=2))
    assert result["done"] == 2
    lm = two_processes.made()
    losses = two_processes.fitted(
        lm, two_processes.TEXTS, shuffle=False, epochs=two_processes.EPOCHS
    )
    np.testing.assert_allclose(result["losses"], losses[4:], **CLOSE)
    one = two_processes.made()
    one.load_weights(tmp_path / "resumed.weights.h5")
    for ours, theirs in zip(one.weights, lm.weights, strict=True):
        np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), atol=1e-5)


def test_the_example_goes_on_from_its_checkpoints(tmp_path):
    tiny.causal_lm(sequence_length=128).save_to_preset(tmp_path / "tiny")
    options = ["--preset", "tiny", "--examples", "8", "--batch_size", "4"]
    address = ["--address", f"127.0.0.1:{free_port()}", "--processes", "2", "--epochs", "2"]
    commands = [[EXAMPLE, *options, *address, "--process", str(number)] for number in (0, 1)]
    one, two = last_lines(started(commands, folder=tmp_path))
    assert one == two and one.endswith("the preset is rgemma_python")
    alone = [EXAMPLE, *options, "--processes", "1", "--model", "2", "--epochs", "3"]
    (again,) = last_lines(started([alone], devices=2, folder=tmp_path))
    losses = [list(map(float, re.findall(r"\d+\.\d+", line))) for line in (one, again)]
    (before, middle), (begins, after) = losses
    assert before > middle > after
    assert begins == pytest.approx(middle, abs=2e-3)  # printed with three digits
