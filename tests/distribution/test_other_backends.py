"""Several processes of PyTorch and TensorFlow: what works, and what is refused."""

import os
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest

import tiny

ROOT = pathlib.Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "examples" / "several_processes_torch.py"
on_torch = pytest.mark.skipif(keras.config.backend() != "torch", reason="is of PyTorch")
on_tensorflow = pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="of TensorFlow")


@on_torch
@pytest.mark.slow
def test_two_processes_with_ddp_learn_as_one_does(tmp_path):
    losses, command = [], [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    for count in (1, 2):
        folder = tmp_path / str(count)
        folder.mkdir()
        done = subprocess.run(
            [*command, "--nproc-per-node", str(count), EXAMPLE, "--examples", "16"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=folder,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        losses.append([float(x) for x in re.findall(r"loss ([\d.]+)", done.stdout)])
    assert len(losses[0]) == 2 and losses[0][1] < losses[0][0]
    np.testing.assert_allclose(losses[1], losses[0], atol=1e-4)  # printed with four digits


@on_torch
def test_processes_of_torchrun_do_not_train_apart(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    lm, texts = tiny.causal_lm(), ["The quick brown fox"]
    with pytest.raises(RuntimeError, match=r"2 processes.*DistributedDataParallel"):
        lm.fit(texts)
    with pytest.raises(RuntimeError, match="2 processes"):
        lm.train_on_batch(*lm.preprocessor(texts))
    assert lm.evaluate(texts, verbose=0)[0] > 0


@on_tensorflow
def test_workers_of_tensorflow_are_refused(monkeypatch):
    cluster = '{"cluster": {"worker": ["127.0.0.1:1", "127.0.0.1:2"]}, "task": {"index": 0}}'
    monkeypatch.setenv("TF_CONFIG", cluster)
    with pytest.raises(RuntimeError, match=r"2 processes.*MirroredStrategy"):
        tiny.causal_lm().fit(["The quick brown fox"])


@on_tensorflow
@pytest.mark.slow
def test_a_mirrored_strategy_trains_as_one_device_does():
    """In a process of its own: TensorFlow counts its devices once."""
    done = subprocess.run(
        [sys.executable, __file__],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests")))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (eval(line) for line in done.stdout.splitlines()[-2:])
    assert len(set(one)) > 2
    np.testing.assert_allclose(two, one, rtol=1e-5)


def _mirrored():
    """Prints losses, and the sum of the weights, of one device and of two."""
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, 2 * [tf.config.LogicalDeviceConfiguration()])
    ids = np.random.RandomState(0).randint(4, 400, (16, 9)).astype("int32")
    mask = np.ones_like(ids)
    mask[::4, 5:] = 0  # rows of one replica have other weights than those of the other
    for devices in (["CPU:0"], ["CPU:0", "CPU:1"]):
        keras.utils.set_random_seed(0)
        with tf.distribute.MirroredStrategy(devices).scope():
            lm = tiny.causal_lm(None)
            lm.compile(keras.optimizers.SGD(0.1, momentum=0.9), weighted_metrics=None)
        seen = []

        def listed(batch, logs, seen=seen):
            seen.append(float(logs["loss"]))

        lm.fit(
            {"token_ids": ids, "padding_mask": mask},
            np.roll(ids, -1, axis=1),
            sample_weight=(mask > 0).astype("float32"),
            batch_size=4,
            shuffle=False,
            verbose=0,
            callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=listed)],
        )
        print([*seen, sum(float(np.abs(x).sum()) for x in lm.get_weights())])


if __name__ == "__main__":
    _mirrored()
