"""Writing that is stopped, by a signal or a full disk, leaves nothing that looks whole."""

import contextlib
import os
import pathlib
import resource
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import tiny
from backend_independent import backend_independent
from keras_rgemma import RGemmaCausalLM, files
from keras_rgemma.checkpoints import export

TESTS = pathlib.Path(__file__).parent.parent
# Writes the same model again and again, in each format in turn.
WRITER = """
import itertools, sys
import tiny
from keras_rgemma.checkpoints import export, safetensors
safetensors.SHARD_BYTES = 5000
lm = tiny.randomize(tiny.causal_lm(sliding_window_size=2048))
for i in itertools.count():
    for to in export.TARGETS:
        export.export(lm.backbone, lm.preprocessor.tokenizer, f"{sys.argv[1]}/{i}-{to}", to)
    lm.save_to_preset(f"{sys.argv[1]}/{i}-keras")
"""


def check_same(folder, lm):
    found = RGemmaCausalLM.from_preset(folder)
    for one, other in zip(found.weights, lm.weights, strict=True):
        np.testing.assert_array_equal(tiny.numpy(one), tiny.numpy(other))
    assert found.preprocessor.tokenizer.proto == lm.preprocessor.tokenizer.proto


@backend_independent
@pytest.mark.slow
def test_what_a_killed_process_leaves_is_whole_or_hidden(tmp_path):
    environment = {**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"}
    writer = subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], env=environment)
    try:
        while not (tmp_path / "0-keras").exists():
            assert writer.poll() is None
            time.sleep(0.1)
        time.sleep(np.random.RandomState().uniform(0, 2))
    finally:
        writer.kill()
        writer.wait()
    names = [path.name for path in sorted(tmp_path.iterdir(), key=os.path.getmtime)]
    assert len([name for name in names if name.startswith(".")]) <= 1, names
    whole = [name for name in names if not name.startswith(".")]
    first = RGemmaCausalLM.from_preset(tmp_path / whole[0])
    for name in whole[1:4] + whole[-2:]:  # one of each form, and those that may be broken
        check_same(tmp_path / name, first)


@pytest.fixture
def small_files():
    """Files may have 20,000 bytes from here on: the next write fails as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("to", export.TARGETS)
def test_a_disk_that_takes_no_more(tmp_path, small_files, to):
    backbone = tiny.backbone()
    with pytest.raises(OSError, match=r"could not be written.*Nothing was left.*disk"):
        export.export(backbone, None, tmp_path / "out", to)
    assert not list(tmp_path.iterdir())


def test_threads_that_outlive_the_error_of_a_writer_leave_nothing(tmp_path):
    def write(folder):
        for i in range(60):
            folder.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # between the folder and the file
                (folder / str(i)).write_bytes(b"late")
            time.sleep(0.005)

    with pytest.raises(ZeroDivisionError), files.new_folder(tmp_path / "out") as folder:
        threading.Thread(target=write, args=(folder / "d",)).start()
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
