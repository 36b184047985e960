"""The preset that ships with its weights."""

import os
import pathlib
import re
import subprocess
import sys
import zipfile

import keras_hub
import numpy as np
import pytest

import keras_rgemma
from backend_independent import backend_independent
from keras_rgemma.checkpoints import presets

ROOT = pathlib.Path(__file__).resolve().parents[2]
QUESTION = "<start_of_turn>user\nWhat is a lighthouse?<end_of_turn>\n<start_of_turn>model\n"


@pytest.fixture(scope="module")
def lm():
    return keras_rgemma.RGemmaCausalLM.from_preset("rgemma_tiny_en")


def test_it_answers_in_english_and_continues(lm):
    answer = lm.generate(QUESTION, max_new_tokens=32, strip_prompt=True)
    assert answer.startswith("A lighthouse is a")
    assert answer.rstrip().endswith(".")
    # A thing that gives light, or that is built; a model that knows no words says "a person".
    assert re.search(r"\b(house|tower|building|structure|light)\b", answer)
    text = lm.generate("In the beginning", max_new_tokens=16)
    assert text.startswith("In the beginning ")
    assert len(text.split()) > 8


def test_every_backend_writes_the_same_text(lm):
    """Each backend is compared with what one of them wrote when the weights were made."""
    expected = (ROOT / "tests" / "model" / "expected_text.txt").read_text(encoding="utf-8")
    prompts = [QUESTION, "In the beginning", "And the LORD said unto"]
    assert "\n---\n".join(lm.generate(prompts, max_new_tokens=24)) == expected


def test_weights_and_tokenizer_are_small():
    folder = pathlib.Path(presets.presets()["rgemma_tiny_en"]["path"])
    assert sum(file.stat().st_size for file in folder.rglob("*")) < 12e6


def test_it_loads_in_the_default_dtype_or_the_one_asked_for(lm):
    assert lm.dtype_policy.name == "float32"
    half = keras_rgemma.RGemmaBackbone.from_preset("rgemma_tiny_en", dtype="bfloat16")
    assert {weight.dtype for weight in half.weights} == {"bfloat16"}


def test_keras_hub_loads_a_saved_folder(lm, tmp_path):
    lm.save_to_preset(tmp_path)
    loaded = keras_hub.models.CausalLM.from_preset(str(tmp_path))
    assert type(loaded) is keras_rgemma.RGemmaCausalLM
    for ours, theirs in zip(lm.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(np.array(ours), np.array(theirs))


@backend_independent
@pytest.mark.slow
def test_an_installed_wheel_finds_its_presets(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "-w", str(tmp_path), str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import keras_rgemma, pathlib;"
        "lm = keras_rgemma.RGemmaCausalLM.from_preset('rgemma_tiny_en');"
        "print(pathlib.Path(keras_rgemma.__file__).parent.parent.name,"
        " lm.generate('In the beginning', max_new_tokens=4))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("site In the beginning")
