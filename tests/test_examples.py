"""The scripts in examples/ run as they stand."""

import importlib.util
import json
import pathlib
import re
import runpy
import sys

import keras
import numpy as np
import pytest

import tiny
from backend_independent import backend_independent
from keras_rgemma import RGemmaCausalLM

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"


@pytest.mark.slow
def test_generate(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["generate.py", "--max_new_tokens", "20"])
    runpy.run_path(str(EXAMPLES / "generate.py"), run_name="__main__")
    out = capsys.readouterr().out
    assert out.startswith("In the beginning ")
    assert "\nWhat is a lighthouse?\nA lighthouse is " in out


@pytest.mark.slow
@pytest.mark.parametrize(
    "script, options",
    [
        ("lora", ["--out", "a.lora.h5"]),
        ("qlora", ["--out", "a.lora.h5"]),
        ("full_finetuning", ["--out", "preset"]),
        ("packing", []),
    ],
)
def test_finetuning(script, options, monkeypatch, capsys, tmp_path):
    """On a few questions: what was learned lowers the loss on others."""
    if keras.config.backend() != "torch" and script != "lora":
        pytest.skip("minutes of compilation there; the scripts name no backend")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)
    python_questions = importlib.import_module("python_questions")
    learned, held_out = python_questions.conversations()
    assert len(learned) > 700 and 50 < len(held_out) < len(learned) / 5
    monkeypatch.setattr(python_questions, "conversations", lambda: (learned[::30], held_out[:4]))
    command = [f"{script}.py", "--epochs", "1", "--batch_size", "4", *options]
    monkeypatch.setattr(sys, "argv", command)
    runpy.run_path(str(EXAMPLES / f"{script}.py"), run_name="__main__")
    out = capsys.readouterr().out
    losses = re.findall(r"held-out loss ([\d.]+) -> ([\d.]+)", out)
    assert len(losses) == 1
    before, after = map(float, losses[0])
    assert after < before - 0.3
    assert out.count("in Python? -> ") == 2 * out.count(": held-out loss")
    if options:
        assert (tmp_path / options[1]).exists()


@pytest.fixture
def training(tmp_path, monkeypatch, capsys):
    """`train.py`, the folder of its data, and a function that runs two steps on a few tokens."""
    spec = importlib.util.spec_from_file_location("train", EXAMPLES / "train_rgemma_tiny/train.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "ROW", 32)
    monkeypatch.setattr(script, "ARCHITECTURE", tiny.SIZES)
    data, stream = tmp_path / "data", np.tile(np.arange(400, dtype="uint16"), 2)
    data.mkdir()
    for name in ("train", "common", "heldout_wordnet", "heldout_bible"):
        np.save(data / f"{name}.npy", stream)
    (data / "tokenizer.model").write_bytes(tiny.proto())
    sizes = {"bytes": 4 * len(stream)}
    (data / "stats.json").write_text(json.dumps({"heldout": {"wordnet": sizes, "bible": sizes}}))

    def result(*arguments):
        command = ["train.py", "--data", data, "--steps", 2, "--batch_size", 1, *arguments]
        monkeypatch.setattr(sys, "argv", [*map(str, command)])
        script.main()
        return json.loads(capsys.readouterr().out.strip().splitlines()[-1])

    return script, data, result


@pytest.mark.slow
def test_train_rgemma_tiny(training, tmp_path):
    """Two steps and two more; the preset that it writes answers."""
    _, data, result = training
    start = data / "rgemma.weights.h5"
    more = ("--start", start, "--streams", "train", "common", "--out", tmp_path / "preset")
    for found in (result(), result(*more)):
        assert found["tokens"] == 2 * 32
        assert 1 < found["wordnet_bits_per_byte"] < 10
    lm = RGemmaCausalLM.from_preset(tmp_path / "preset")
    assert lm.generate("The quick", max_new_tokens=3).startswith("The quick")
    metadata = json.loads((tmp_path / "preset" / "metadata.json").read_text())
    assert metadata["weights"] == "embedded"


@backend_independent
@pytest.mark.slow
def test_training_that_was_killed_goes_on_to_the_same_result(training, monkeypatch):
    _, data, result = training

    def arrays(name):
        with np.load(data / f"{name}.checkpoint.npz") as file:
            return dict(file)

    def killed(model, *arguments, **options):
        if int(model.optimizer.iterations) == 3:
            raise KeyboardInterrupt
        return train_on_batch(model, *arguments, **options)

    # Killed after three steps of four, of which the first two are in the file.
    four = ("--steps", 4, "--checkpoint_every", 2, "--name")
    train_on_batch = RGemmaCausalLM.train_on_batch
    monkeypatch.setattr(RGemmaCausalLM, "train_on_batch", killed)
    with pytest.raises(KeyboardInterrupt):
        result(*four, "killed")
    assert arrays("killed")["step"] == 2
    monkeypatch.setattr(RGemmaCausalLM, "train_on_batch", train_on_batch)
    assert result(*four, "killed") == result(*four, "whole")
    resumed, whole = arrays("killed"), arrays("whole")
    assert resumed.keys() == whole.keys() and len(whole) > 20
    for key, value in whole.items():
        np.testing.assert_array_equal(resumed[key], value)


@backend_independent
def test_a_wider_model_starts_as_the_preset(training, tmp_path):
    script, _, _ = training
    lm = RGemmaCausalLM(script.build("rgemma").backbone, tiny.preprocessor())
    lm.save_to_preset(tmp_path / "preset")
    wider = script.build("rgemma", intermediate_dim=56)
    script.fill(wider, tmp_path / "preset")
    inputs = script.model_inputs("rgemma", np.arange(4, 12)[None], np.ones((1, 8), "int32"))
    assert wider.count_params() > lm.count_params()
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(wider.backbone(inputs)),
        keras.ops.convert_to_numpy(lm.backbone(inputs)),
        rtol=1e-5,
        atol=1e-5,
    )
