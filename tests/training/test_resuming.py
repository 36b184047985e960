"""Training that was stopped goes on with `BackupAndRestore` and ends where it would have.

    python tests/training/test_resuming.py FOLDER WEIGHTS ACCESS

trains with a backup in the folder and writes the weights, or kills itself at an access to it.
"""

import itertools
import os
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest

import tiny
from backend_independent import backend_independent
from keras_rgemma.finetuning import AdamW

EPOCHS, BATCHES = 3, 2
RANK = 2  # of LoRA, where it is trained


class Stop(keras.callbacks.Callback):
    """Stops at a batch, counted over all epochs, as Ctrl-C or the end of a machine does."""

    def __init__(self, place):
        super().__init__()
        self.left = place

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def trained(rank, folder=None, stop=None):
    """The weights after training, or None if it was stopped."""
    keras.utils.set_random_seed(0)
    lm = tiny.randomize(tiny.causal_lm(None, num_layers=1))
    if rank:
        lm.backbone.enable_lora(rank)
    lm.compile(AdamW(1e-2), weighted_metrics=[])
    x = tiny.arrays(rows=2 * BATCHES)
    callbacks = [keras.callbacks.BackupAndRestore(folder)] if folder else []
    callbacks += [Stop(stop)] if stop else []
    y = np.roll(x["token_ids"], -1, axis=1)
    try:
        lm.fit(x, y, batch_size=2, epochs=EPOCHS, shuffle=False, verbose=0, callbacks=callbacks)
    except KeyboardInterrupt:
        return None
    return {weight.path: tiny.numpy(weight) for weight in lm.weights}


@pytest.fixture(scope="module", params=[None, RANK], ids=["full", "lora"])
def unbroken(request):
    return request.param, trained(request.param)


@pytest.mark.parametrize("stop", [3, 4])  # in the second epoch, and at its end
def test_training_goes_on_where_it_stopped(unbroken, stop, tmp_path):
    rank, expected = unbroken
    folder = str(tmp_path / "backup")
    assert trained(rank, folder, stop) is None
    found = trained(rank, folder)
    assert_equal(found, expected)
    assert any("lora" in path for path in found) == bool(rank)


def test_a_stop_while_it_saves_loses_no_backup(unbroken, tmp_path, monkeypatch):
    rank, expected = unbroken
    folder = str(tmp_path / "backup")
    original, calls = keras.src.saving.saving_lib.save_weights_only, []

    def interrupted(model, filepath, *args, **kwargs):
        original(model, filepath, *args, **kwargs)
        calls.append(filepath)
        if len(calls) == 2:
            filepath.write_bytes(filepath.read_bytes()[:1000])
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(keras.src.saving.saving_lib, "save_weights_only", interrupted)
        assert trained(rank, folder) is None
    assert len(calls) == 2
    assert_equal(trained(rank, folder), expected)


def assert_equal(found, expected):
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, 1e-5, 1e-6, err_msg=path)


@pytest.mark.parametrize("left", ["", '{"ep'])
def test_a_stop_between_the_weights_and_their_epoch_loses_nothing(
    unbroken, left, tmp_path, monkeypatch
):
    rank, expected = unbroken
    folder, calls = tmp_path / "backup", []
    original = keras.callbacks.BackupAndRestore._save_model

    def interrupted(callback):
        progress = folder / "training_metadata.json"
        before = progress.read_text() if calls else ""
        original(callback)
        calls.append(callback)
        if len(calls) == 2:
            progress.write_text(left or before)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(keras.callbacks.BackupAndRestore, "_save_model", interrupted)
        assert trained(rank, str(folder)) is None
    assert_equal(trained(rank, str(folder)), expected)


def test_training_after_a_backup_was_restored_has_all_its_epochs(tmp_path):
    lm = tiny.causal_lm(None, num_layers=1)
    lm.compile(AdamW(1e-2), weighted_metrics=[])
    x = tiny.arrays()
    y = np.roll(x["token_ids"], -1, axis=1)

    def epochs(count, *callbacks):
        return lm.fit(x, y, epochs=count, verbose=0, callbacks=[*callbacks]).epoch

    def backup():
        return keras.callbacks.BackupAndRestore(str(tmp_path / "b"), delete_checkpoint=False)

    assert epochs(2, backup()) == [0, 1]
    assert epochs(3, backup()) == [2]
    assert epochs(3) == [0, 1, 2]


@backend_independent
@pytest.mark.slow
def test_kills_lose_nothing(tmp_path):
    folder, weights = tmp_path / "backup", tmp_path / "weights.npz"
    command = [sys.executable, __file__, str(folder), str(weights)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    # As the first epoch is written, before the second takes its name, as that is written, before
    # the files are read, and at the end, when they are deleted but their folder is not.
    for access in (5, 4, 5, 2, 8):
        code = subprocess.run([*command, str(access)], env=environment).returncode
        assert code == -signal.SIGKILL and not weights.exists()
    assert subprocess.run([*command, "0"], env=environment).returncode == 0
    assert not folder.exists()
    assert_equal(np.load(weights), trained(RANK))


def main(folder, weights, access):
    count = itertools.count(1)

    def kill(event, arguments):
        if any(folder in str(argument) for argument in arguments) and next(count) == int(access):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(kill)
    np.savez(weights, **trained(RANK, folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
