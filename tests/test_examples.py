"""The scripts in examples/ run as they stand."""

import json
import pathlib
import runpy
import sys

import numpy as np
import pytest

import tiny
from keras_rgemma import RGemmaCausalLM

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"


def run(script, *arguments, monkeypatch, capsys):
    """What a script prints."""
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    return capsys.readouterr().out


@pytest.mark.slow
def test_generate(monkeypatch, capsys):
    io = {"monkeypatch": monkeypatch, "capsys": capsys}
    out = run("generate.py", "--max_new_tokens", 20, **io)
    assert out.startswith("In the beginning ")
    assert "\nWhat is a lighthouse?\nA lighthouse is " in out


@pytest.mark.slow
def test_train_rgemma_tiny(tmp_path, monkeypatch, capsys):
    """On a few tokens, two steps and two more; the preset that it writes answers."""
    io = {"monkeypatch": monkeypatch, "capsys": capsys}
    data, stream = tmp_path / "data", np.tile(np.arange(400, dtype="uint16"), 6)
    data.mkdir()
    for name in ("train", "common", "heldout_wordnet", "heldout_bible"):
        np.save(data / f"{name}.npy", stream)
    (data / "tokenizer.model").write_bytes(tiny.proto())
    sizes = {"bytes": 4 * len(stream)}
    (data / "stats.json").write_text(json.dumps({"heldout": {"wordnet": sizes, "bible": sizes}}))
    script, common = "train_rgemma_tiny/train.py", ("--data", data, "--steps", 2, "--batch_size", 1)
    first = run(script, *common, **io)
    more = ("--start", data / "rgemma.weights.h5", "--streams", "train", "common")
    second = run(script, *common, *more, "--out", tmp_path / "preset", **io)
    for out in (first, second):
        result = json.loads(out.strip().splitlines()[-1])
        assert result["tokens"] == 2 * 512
        assert 1 < result["wordnet_bits_per_byte"] < 10
    lm = RGemmaCausalLM.from_preset(tmp_path / "preset")
    assert lm.generate("The quick", max_new_tokens=3).startswith("The quick")
    metadata = json.loads((tmp_path / "preset" / "metadata.json").read_text())
    assert metadata["weights"] == "embedded"
