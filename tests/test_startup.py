"""What TensorFlow logs while it starts is dropped; everything else on standard error is not."""

import os

import pytest

from backend_independent import backend_independent
from keras_rgemma.startup import without_startup_lines

pytestmark = backend_independent

AT = "00:00:1795729365.688691   15554"
DROPPED = [
    "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
    f"I0000 {AT} port.cc:153] oneDNN custom operations are on. You may see",
    f"I0000 {AT} cudart_stub.cc:31] Could not find cuda drivers on your machine",
    "To enable the following instructions: AVX2 AVX512F, in other operations, rebuild TensorFlow",
    f"E0000 {AT} cuda_dnn.cc:8579] Unable to register cuDNN factory: Attempting to register factory"
    " for plugin cuDNN when one has already been registered",
    f"W0000 {AT} computation_placer.cc:177] computation placer already registered. Please check",
    "2026-11-26 21:23:03.123456: I tensorflow/core/util/port.cc:153] oneDNN custom operations",
]
KEPT = [
    f"E0000 {AT} gpu_device.cc:1] out of memory",
    f"W0000 {AT} gpu_device.cc:2342] Cannot dlopen some GPU libraries.",
    f"F0000 {AT} cpu_feature_guard.cc:1] AVX is missing",
    "2026-11-26 21:23:03.123456: E tensorflow/core/x.cc:1] broken",
    "Info: I am no line of TensorFlow",
    "UserWarning: a warning of Python",
    "",
]
NO_DRIVER = f"E0000 {AT} cuda_platform.cc:52] failed call to cuInit: UNKNOWN ERROR (303)"


def written(lines, capfd):
    """What comes through of lines that C code writes."""
    with without_startup_lines():
        os.write(2, "".join(f"{line}\n" for line in lines).encode())
    return capfd.readouterr().err.splitlines()


@pytest.mark.parametrize("line", DROPPED)
def test_lines_of_each_start_are_dropped(line, capfd):
    assert written(["before", line, "after"], capfd) == ["before", "after"]


@pytest.mark.parametrize("line", KEPT)
def test_other_lines_are_kept(line, capfd):
    assert written(["before", line, "after"], capfd) == ["before", line, "after"]


@pytest.mark.parametrize("is_there", [False, True])
def test_a_driver_that_fails_is_news_where_there_is_one(is_there, capfd, monkeypatch):
    monkeypatch.setattr("keras_rgemma.startup._DRIVER", "/" if is_there else "/none")
    assert written([NO_DRIVER], capfd) == [NO_DRIVER] * is_there


def test_after_an_error_everything_is_shown(capfd):
    with pytest.raises(ImportError), without_startup_lines():
        os.write(2, (DROPPED[0] + "\n").encode())
        raise ImportError
    assert capfd.readouterr().err == DROPPED[0] + "\n"


def test_who_asks_for_the_lines_gets_them(capfd, monkeypatch):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    assert written(DROPPED, capfd) == DROPPED


def test_lines_outside_of_the_block_pass(capfd):
    with without_startup_lines():
        pass
    os.write(2, (DROPPED[1] + "\n").encode())
    assert capfd.readouterr().err == DROPPED[1] + "\n"


def test_a_process_without_standard_error_works(tmp_path):
    saved = os.dup(2)
    os.close(2)
    try:
        with without_startup_lines():
            pass
    finally:
        os.dup2(saved, 2)
        os.close(saved)
