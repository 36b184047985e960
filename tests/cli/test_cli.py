"""The command `keras-rgemma`: what it writes and prints, and the exit codes that scripts trust."""

import gc
import io
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from huggingface_hub import constants

import keras_rgemma
import tiny
from backend_independent import backend_independent
from keras_rgemma import RGemmaCausalLM
from keras_rgemma.checkpoints.folder import open_checkpoint
from keras_rgemma.cli import main
from keras_rgemma.generation.chat import Chat

FOREIGN = ("transformers", "flax", "torch")


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    """A Keras preset, and its model."""
    folder = tmp_path_factory.mktemp("presets") / "preset"
    lm = tiny.randomize(tiny.causal_lm(sliding_window_size=2048))
    lm.save_to_preset(folder)
    return folder, lm


def check_same(folder, lm):
    found = RGemmaCausalLM.from_preset(folder)
    for one, other in zip(found.weights, lm.weights, strict=True):
        assert one.path == other.path
        np.testing.assert_array_equal(tiny.numpy(one), tiny.numpy(other))
    assert found.preprocessor.tokenizer.proto == lm.preprocessor.tokenizer.proto


@pytest.mark.parametrize("first", FOREIGN)
def test_there_and_back_through_every_pair_of_formats(preset, tmp_path, first, capsys):
    folder, lm = preset
    here = tmp_path / first
    assert main(["convert", str(folder), str(here), "--to", first]) == 0
    check_same(here, lm)
    for second in (*FOREIGN, "keras"):
        there = tmp_path / f"{first}-{second}"
        assert main(["convert", str(here), str(there), "--to", second]) == 0
        check_same(there, lm)
    assert f"Wrote {there}" in capsys.readouterr().out


def test_the_dtype_of_the_source_is_kept_or_the_one_asked_for(preset, tmp_path):
    folder, _ = preset
    half, again, wide = (str(tmp_path / name) for name in ("half", "again", "wide"))
    assert main(["convert", str(folder), half, "--to", "flax", "--dtype", "bfloat16"]) == 0
    assert main(["convert", half, again, "--to", "torch"]) == 0
    assert main(["convert", again, wide, "--to", "transformers", "--dtype", "float32"]) == 0
    assert [open_checkpoint(x).dtype for x in (half, again, wide)] == ["bfloat16"] * 2 + ["float32"]
    keras_preset, last = str(tmp_path / "keras"), str(tmp_path / "last")
    assert main(["convert", half, keras_preset, "--to", "keras"]) == 0
    assert main(["convert", keras_preset, last, "--to", "torch"]) == 0
    assert open_checkpoint(last).dtype == "bfloat16"


def test_errors_are_one_line_and_an_exit_code(preset, tmp_path, capsys):
    for arguments, message in (
        (["rgemma_2b", str(tmp_path / "out"), "--to", "keras"], "rgemma_2b_en"),
        ([str(preset[0]), str(preset[0]), "--to", "flax"], "Nothing was written"),
    ):
        assert main(["convert", *arguments]) == 1
        error = capsys.readouterr().err
        assert error.startswith("keras-rgemma: ") and message in error
    with pytest.raises(SystemExit) as stopped:
        main(["convert", "somewhere"])
    assert stopped.value.code == 2
    assert not list(tmp_path.iterdir())


def test_a_folder_around_the_source_is_not_replaced(preset, tmp_path, capsys):
    around = tmp_path / "around"
    shutil.copytree(preset[0], around / "params")
    for destination in (around, tmp_path, ""):
        arguments = [str(around / "params"), str(destination), "--to", "torch", "--overwrite"]
        assert main(["convert", *arguments]) == 1
        assert capsys.readouterr().err.startswith("keras-rgemma: ")
    check_same(around / "params", preset[1])


def test_settings_that_weights_do_not_tell_are_kept(tmp_path):
    odd = {
        "activation": "relu",
        "final_logit_soft_cap": None,
        "scale_embeddings": False,
        "layer_norm_epsilon": 1e-3,
        "rope_max_wavelength": 99,
        "sliding_window_size": 7,
    }
    lm = tiny.randomize(tiny.causal_lm(**odd))
    lm.save_to_preset(tmp_path / "keras")
    for source, to in (("keras", "flax"), ("flax", "torch"), ("torch", "keras")):
        there = tmp_path / f"{to}-again"
        assert main(["convert", str(tmp_path / source), str(there), "--to", to]) == 0
        there.rename(tmp_path / to) if to != "keras" else None
    found = RGemmaCausalLM.from_preset(tmp_path / "keras-again")
    assert found.backbone.config == lm.backbone.config
    config = tmp_path / "flax" / "keras_rgemma.json"
    config.unlink()  # as in what others wrote
    found = RGemmaCausalLM.from_preset(tmp_path / "flax", **odd)
    assert found.backbone.config.to_dict() == {**lm.backbone.config.to_dict(), "head_dim": 8}
    config.write_text('{"hidden_dim": 16, "experts": 3}')
    with pytest.raises(ValueError, match=r"keras_rgemma\.json' is no architecture.*experts"):
        RGemmaCausalLM.from_preset(tmp_path / "flax")


def test_quantized_presets_stay_quantized(tmp_path, capsys):
    lm = tiny.causal_lm(sliding_window_size=2048)
    lm.quantize("int8")
    lm.save_to_preset(tmp_path / "int8")
    source, there = str(tmp_path / "int8"), str(tmp_path / "there")
    assert main(["convert", source, there, "--to", "keras"]) == 0
    check_same(there, lm)
    assert main(["convert", source, str(tmp_path / "no"), "--to", "torch"]) == 1
    assert "quantized to int8" in capsys.readouterr().err


def test_a_command_that_is_stopped_says_so(monkeypatch, capsys):
    def stop(args):
        raise KeyboardInterrupt

    monkeypatch.setattr("keras_rgemma.cli.presets.run", stop)
    assert main(["presets"]) == 130
    assert capsys.readouterr().err == "keras-rgemma: stopped\n"


@backend_independent
def test_generate_writes_the_prompt_and_what_follows(preset, capsys, monkeypatch):
    arguments = ["--preset", str(preset[0]), "--max-new-tokens", "5"]
    expected = preset[1].generate("The quick", max_new_tokens=5) + "\n"
    assert main(["generate", "The quick", *arguments]) == 0
    assert capsys.readouterr().out == expected
    monkeypatch.setattr(sys, "stdin", io.StringIO("The quick"))
    assert main(["generate", "-", *arguments]) == 0
    assert capsys.readouterr().out == expected
    stop = expected[len("The quick") + 1 : len("The quick") + 3]
    assert main(["generate", "The quick", *arguments, "--stop", stop]) == 0
    assert capsys.readouterr().out == "The quick" + expected[9:].split(stop)[0] + "\n"
    texts = []
    for sampler in ("beam", "top_p", "top_p"):
        more = ["--sampler", sampler, "--seed", "3", "--temperature", "2"]
        assert main(["generate", "The quick", *arguments, *more]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[1] == texts[2]
    for wrong in (["--sampler", "typo"], ["--temperature", "0"], ["--max-new-tokens", "-1"]):
        assert main(["generate", "The quick", *arguments, *wrong]) == 1
        assert capsys.readouterr().err.startswith("keras-rgemma: `")


@backend_independent
@pytest.mark.slow
def test_chat_goes_on_after_an_answer_that_was_stopped(tmp_path):
    """A real process: Ctrl-C ends the answer, the next message is answered, the end is an end."""
    command = [sys.executable, "-m", "keras_rgemma.cli", "chat", "--max-new-tokens", "100000"]
    # Hot enough to talk on and on.
    command += ["--sampler", "random", "--temperature", "50", "--seed", "1"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(pathlib.Path(keras_rgemma.__file__).parent.parent)
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    saved = tmp_path / "chat.rgstate"
    process.stdin.write(b"Hi\n")
    process.stdin.flush()
    first = process.stdout.read(20)
    process.send_signal(signal.SIGINT)
    process.stdin.write(f"/save {saved}\n/typo\n/quit\n".encode())
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()
    assert len(first) == 20 and output.decode(errors="replace").endswith(f"Wrote {saved}.\n")
    assert b"Unknown command '/typo'" in errors
    lm = RGemmaCausalLM.from_preset("rgemma_tiny_en")
    chat = lm.load_chat(saved, max_new_tokens=3)
    assert [message["content"] for message in chat.history][:1] == ["Hi"]
    assert (
        len(chat.history) == 2 and first.decode(errors="ignore")[:8] in chat.history[1]["content"]
    )
    assert isinstance(chat.send("Again"), str)


@backend_independent
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_in_the_garbage_collector_ends_an_answer(monkeypatch, capsys, default_handler):
    """What is raised in its callbacks, Python prints and forgets."""
    stream, lines = Chat.stream, iter(["Hi", "/quit"])

    def press(*_):
        gc.callbacks.remove(press)
        signal.raise_signal(signal.SIGINT)

    def pressed(chat, message):
        for place, piece in enumerate(stream(chat, message)):
            if place == 2:
                gc.callbacks.append(press)
                gc.collect()
            yield piece

    monkeypatch.setattr(Chat, "stream", pressed)
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    # Hot enough to talk on and on.
    options = ["--max-new-tokens", "100", "--sampler", "random", "--temperature", "50"]
    assert main(["chat", *options]) == 0
    assert press not in gc.callbacks
    assert capsys.readouterr().out.endswith(" ...\n")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_presets_are_listed_with_what_is_in_the_cache(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    blobs = tmp_path / "models--google--recurrentgemma-9b" / "blobs"
    blobs.mkdir(parents=True)
    for name, size in (("a", 2_000_000_000), ("b", 100_000_000), ("c.incomplete", 7_000_000_000)):
        with open(blobs / name, "wb") as file:
            file.truncate(size)
    assert main(["presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = {line.split()[0]: line for line in lines if line}
    assert re.search(r"3,482,304 +- +- +ship with", found["rgemma_tiny_en"])
    assert re.search(r"2,682,862,080 +5\.4 GB +no +hf://.*token", found["rgemma_2b_en"])
    assert re.search(r"8,579,977,216 +19\.3 GB +2\.1 GB +hf://.*token", found["rgemma_9b_en"])
    assert re.search(r" - +- +none were published", found["griffin_7b"])
    assert "HF_TOKEN" in lines[-1]
