"""A folder around checkpoints is not one itself: the error names those that would load."""

import json
import shutil

import pytest

import tiny
from backend_independent import backend_independent
from checkpoints import loopback
from keras_rgemma import RGemmaBackbone, RGemmaCausalLM

CLASSES = (RGemmaCausalLM, RGemmaBackbone)
NAMES = ["checkpoint-500", "checkpoint-1500", "checkpoint-10000"]


@pytest.fixture
def around(tmp_path):
    """What transformers' Trainer leaves: folders of steps, and others that are none."""
    folder = tmp_path / "out"
    lm = tiny.causal_lm(layer_norm_epsilon=1e-6)
    for name in NAMES:
        lm.export_to_transformers(folder / name)
        for other in ("optimizer.pt", "scheduler.pt", "training_args.bin"):
            (folder / name / other).write_bytes(b"x")
    for name, contents in (("runs", None), ("checkpoint-7", "{"), ("bert", {"model_type": "bert"})):
        (folder / name).mkdir()
        if contents:
            text = contents if isinstance(contents, str) else json.dumps(contents)
            (folder / name / "config.json").write_text(text)
            (folder / name / "model.safetensors").write_bytes(b"x")
    (folder / "training_args.bin").write_bytes(b"x")
    return folder


MESSAGE = rf"would load: \[{', '.join(map(repr, NAMES))}\].*`subfolder='{NAMES[-1]}'`"


@backend_independent
@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("has_config", [False, True])
def test_the_error_names_the_folders(cls, has_config, around):
    if has_config:
        shutil.copy(around / NAMES[0] / "config.json", around)
    with pytest.raises(ValueError, match=MESSAGE):
        cls.from_preset(around)
    for chosen in ({"preset": around / NAMES[1]}, {"preset": around, "subfolder": NAMES[1]}):
        model = cls.from_preset(**chosen)
        assert getattr(model, "backbone", model).num_layers == tiny.SIZES["num_layers"]


@backend_independent
@pytest.mark.parametrize("has_config", [False, True])
def test_the_same_on_a_hub(has_config, around, empty_hub):
    if has_config:
        shutil.copy(around / NAMES[0] / "config.json", around)
    shutil.rmtree(around / "bert")
    empty_hub.files["main"] = loopback.files_of(around)
    with pytest.raises(ValueError, match=MESSAGE):
        RGemmaCausalLM.from_preset("hf://someone/model")
    assert not any(name.endswith(".safetensors") for name in empty_hub.sent)
    lm = RGemmaCausalLM.from_preset("hf://someone/model", subfolder=NAMES[1])
    assert lm.preprocessor is not None
    fetched = {name for name in empty_hub.sent if name.endswith(loopback.LARGE)}
    assert fetched == {f"{NAMES[1]}/model.safetensors"}
