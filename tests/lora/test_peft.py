"""Adapters of Hugging Face PEFT: it loads ours, we load its, and what is refused."""

import json

import keras
import numpy as np
import peft
import pytest
import torch
import transformers

import tiny
from backend_independent import backend_independent
from keras_rgemma.lora import backbone as lora

IDS = np.random.RandomState(3).randint(4, 400, (2, 5))  # before the window is full
GATES = ["rg_lru.input_gate_weight", "rg_lru.recurrent_gate_weight"]


def model():
    """The same one each time, as transformers can express it."""
    keras.utils.set_random_seed(0)
    lm = tiny.causal_lm(None, lru_dim=16, layer_norm_epsilon=1e-6)
    return tiny.randomize(lm)


def logits(lm):
    return tiny.numpy(lm.score(IDS))


def theirs(hf):
    with torch.no_grad():
        return hf(torch.tensor(IDS)).logits.numpy()


def learn(lm, seed=0):
    random = np.random.RandomState(seed)
    for layer in lora.lora_layers_by_path(lm.backbone).values():
        for weight in (layer.lora_kernel_a, layer.lora_kernel_b):
            weight.assign(random.normal(0, 2 if "gate" in layer.name else 0.2, weight.shape))
    return lm


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder of the model for transformers."""
    folder = tmp_path_factory.mktemp("hf") / "base"
    model().export_to_transformers(folder)
    return folder


def hugging_face(base):
    return transformers.AutoModelForCausalLM.from_pretrained(base)


def trained_there(base, folder, **config):
    """A model of PEFT with an adapter whose A and B are random, saved to a folder."""
    config = {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "linear_x"], **config}
    wrapped = peft.get_peft_model(hugging_face(base), peft.LoraConfig(**config))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0, 2 if "rg_lru" in name else 0.2, generator=generator)
    wrapped.save_pretrained(folder)
    return wrapped.eval()


@pytest.mark.parametrize("targets", [None, ["query", "ffw_down"], "input_gate", "a_gate"])
def test_peft_loads_what_was_learned(targets, base, tmp_path):
    lm = model()
    lm.backbone.enable_lora(2, targets, alpha=3)
    learn(lm).export_to_peft(tmp_path / "adapter", base_model=str(base))
    plain = hugging_face(base)
    before = theirs(plain)
    loaded = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter")
    expected = logits(lm)
    assert np.abs(theirs(loaded) - before).max() > 0.05
    np.testing.assert_allclose(theirs(loaded), expected, atol=2e-5 * np.abs(expected).max())
    again = model()
    again.load_from_peft(tmp_path / "adapter")
    for layer, other in zip(
        lora.lora_layers_by_path(again.backbone).values(),
        lora.lora_layers_by_path(lm.backbone).values(),
        strict=True,
    ):
        assert (layer.path, layer.lora_alpha) == (other.path, other.lora_alpha)
        for name in ("lora_kernel_a", "lora_kernel_b"):
            np.testing.assert_array_equal(
                tiny.numpy(getattr(layer, name)), tiny.numpy(getattr(other, name))
            )


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"target_parameters": GATES, "rank_pattern": {"q_proj": 3}, "alpha_pattern": {"q_proj": 1}},
        {"target_modules": ["up_proj"], "target_parameters": GATES[:1], "use_rslora": True},
        {"target_modules": None, "target_parameters": GATES[1:]},
    ],
)
def test_what_peft_trained_is_loaded(config, base, tmp_path):
    wrapped = trained_there(base, tmp_path, **config)
    lm = model()
    before = logits(lm)
    lm.load_from_peft(tmp_path)
    expected = theirs(wrapped)
    assert np.abs(logits(lm) - before).max() > 0.05
    np.testing.assert_allclose(logits(lm), expected, atol=2e-5 * np.abs(expected).max())
    lm.backbone.merge_lora()
    np.testing.assert_allclose(logits(lm), expected, atol=2e-5 * np.abs(expected).max())
    if "target_parameters" in config:  # gates with a B of each block
        again = model()
        again.load_from_peft(tmp_path)
        again.export_to_peft(tmp_path / "again")
        loaded = peft.PeftModel.from_pretrained(hugging_face(base), tmp_path / "again")
        np.testing.assert_allclose(theirs(loaded), expected, atol=2e-5 * np.abs(expected).max())


@backend_independent
def test_gates_of_older_versions_are_the_other_way_round(base, tmp_path):
    """In PEFT before 0.19.1: `einsum("ore,eri->eio", B, A)`."""
    trained_there(base, tmp_path, target_modules=None, target_parameters=GATES[:1])
    file = tmp_path / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "peft_version": "0.18.1"}))
    lm = model()
    kernel = tiny.numpy(lora.linear_layers(lm.backbone)[GATE]._kernel)
    lm.load_from_peft(tmp_path)
    lm.backbone.merge_lora()
    found = tiny.numpy(lora.linear_layers(lm.backbone)[GATE]._kernel) - kernel
    import safetensors.torch

    tensors = safetensors.torch.load_file(tmp_path / "adapter_model.safetensors")
    a, b = (next(x for name, x in tensors.items() if f"lora_{y}" in name) for y in "AB")
    expected = 3 * torch.einsum("ore,eri->eio", b.reshape(8, 2, 2), a.reshape(2, 2, 8))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


GATE = "block_0/recurrent_block/rg_lru/input_gate"


@backend_independent
@pytest.mark.parametrize(
    "config, reason",
    [
        ({"use_dora": True}, "use_dora=True"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"bias": "all"}, "bias='all'"),
        ({"modules_to_save": ["final_norm"]}, r"modules_to_save=\['final_norm'\]"),
        ({"target_modules": ["embed_tokens"]}, "embed_tokens.*, where keras-rgemma has no linear"),
    ],
)
def test_what_cannot_be_expressed_is_refused(config, reason, base, tmp_path):
    trained_there(base, tmp_path, **config)
    lm = model()
    with pytest.raises(ValueError, match=reason):
        lm.load_from_peft(tmp_path)
    assert not lora.lora_layers_by_path(lm.backbone)


@backend_independent
def test_broken_adapters(base, tmp_path):
    lm = model()
    with pytest.raises(ValueError, match="LoRA is not enabled"):
        lm.export_to_peft(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with pytest.raises(FileNotFoundError, match="is no folder"):
        lm.load_from_peft(tmp_path / "none")
    trained_there(base, tmp_path / "a")
    config, weights = (
        tmp_path / "a" / f"adapter_{x}" for x in ("config.json", "model.safetensors")
    )
    text, content = config.read_text(), weights.read_bytes()

    def refused(reason):
        with pytest.raises(ValueError, match=reason):
            lm.load_from_peft(tmp_path / "a")
        assert not lora.lora_layers_by_path(lm.backbone)
        config.write_text(text)
        weights.write_bytes(content)

    for change, reason in (
        ({"peft_type": "LOHA"}, "the kind 'LOHA'"),
        ({"r": 0}, "'r' must be a positive number"),
        ({"lora_alpha": "x"}, "'lora_alpha' must be a positive number"),
    ):
        config.write_text(json.dumps({**json.loads(text), **change}))
        refused(reason)
    config.write_text("{")
    refused("cannot be read as JSON")
    weights.write_bytes(content[:-9])
    refused("missing or broken")
    weights.unlink()
    refused("missing or broken")
    for change, reason in (
        (lambda x: x.popitem(), "lacks the tensor.*Fetch or save"),
        (lambda x: x.update({"more": np.zeros(2)}), "'more', where keras-rgemma has no"),
        (lambda x: x.update({next(iter(x)): np.zeros((2, 3))}), "of the shapes"),
        (lambda x: x[next(iter(x))].fill(np.nan), "not finite.*Fetch it again"),
    ):
        import safetensors.numpy

        tensors = safetensors.numpy.load_file(weights)
        change(tensors)
        safetensors.numpy.save_file(tensors, weights)
        refused(reason)
