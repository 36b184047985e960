"""A fine-tune by PEFT loads by its own name, onto the base that it names."""

import json
import shutil

import numpy as np
import peft
import pytest
import torch
import transformers

import tiny
from backend_independent import backend_independent
from checkpoints import loopback
from keras_rgemma import RGemmaBackbone, RGemmaCausalLM, RGemmaCausalLMPreprocessor, RGemmaTokenizer
from keras_rgemma.checkpoints.folder import open_checkpoint
from keras_rgemma.cli import main
from keras_rgemma.lora.backbone import lora_layers_by_path

HF, MODEL_SCOPE = "hf://someone/adapter", "modelscope://someone/adapter"
KAGGLE = "kaggle://someone/adapter/transformers/lora"
NEW = 12  # tokens; with the prompt fewer than the window
PROMPT = "The quick brown fox"
GATES = ["rg_lru.input_gate_weight", "rg_lru.recurrent_gate_weight"]
# The forms that PEFT writes: the arguments of LoraConfig, of `get_peft_model`, of
# `save_pretrained`; and what chooses the adapter.
FORMS = {
    "default": ({}, {}, {}, {}),
    "gates": ({"target_parameters": GATES, "use_rslora": True}, {}, {}, {}),
    "pickled": ({"target_modules": ["down_proj"]}, {}, {"safe_serialization": False}, {}),
    "named": ({}, {"adapter_name": "words"}, {}, {"subfolder": "words"}),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder of a model in the form of transformers."""
    lm = tiny.causal_lm(
        lru_dim=16, layer_norm_epsilon=1e-6, sliding_window_size=64, sequence_length=64
    )
    folder = tmp_path_factory.mktemp("base") / "base"
    tiny.wordy(lm).export_to_transformers(folder)
    return folder


def fine_tuned(base, config, named):
    """A model of PEFT that has learned a few steps."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(**{"r": 2, "target_modules": "all-linear", **config})
    model = peft.get_peft_model(model, config, **named)
    optimizer = torch.optim.AdamW([x for x in model.parameters() if x.requires_grad], 0.05)
    ids = torch.randint(4, 400, (2, 9))
    for _ in range(4):
        forget(model)
        model(ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def forget(model):
    """Removes the states of the call before, which transformers keeps behind PEFT's wrappers."""
    for module in model.modules():
        if "recurrent_states" in vars(module):
            module.recurrent_states = None


def text_there(model, lm):
    """What transformers writes greedily."""
    tokenizer = lm.preprocessor.tokenizer
    ids = [tokenizer.start_token_id, *tokenizer.token_id_rows([PROMPT])[0]]
    forget(model)
    out = model.generate(torch.tensor([ids]), max_new_tokens=NEW, do_sample=False)
    return lm.preprocessor.text_of(out.tolist())[0].removesuffix("<end_of_turn>")


@pytest.fixture(scope="module", params=FORMS)
def tuned(request, base, tmp_path_factory):
    """The folder of an adapter, its model there, and what chooses the adapter in the folder."""
    config, named, saved, chosen = FORMS[request.param]
    model = fine_tuned(base, config, named)
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    model.save_pretrained(folder, **saved)
    return folder, model, chosen


def rename_base(folder, name, **more):
    for file in folder.rglob("adapter_config.json"):
        config = {**json.loads(file.read_text()), "base_model_name_or_path": name, **more}
        file.write_text(json.dumps(config))


@pytest.fixture(scope="module")
def text_of_base(base):
    return RGemmaCausalLM.from_preset(base).generate(PROMPT, max_new_tokens=NEW)


def check(lm, model, text_of_base):
    """The model answers as transformers does, and not as its base; A and B alone are trained."""
    found = lm.generate(PROMPT, max_new_tokens=NEW)
    assert found == text_there(model, lm)
    assert found != text_of_base
    layers = lora_layers_by_path(lm.backbone).values()
    factors = {id(x) for layer in layers for x in (layer.lora_kernel_a, layer.lora_kernel_b)}
    assert {id(x) for x in lm.trainable_weights} == factors


def check_same(one, other):
    """Two models have the same weights, and the same of them are trained."""
    assert len(one.weights) == len(other.weights)
    for weight, expected in zip(one.weights, other.weights, strict=True):
        assert weight.trainable == expected.trainable
        np.testing.assert_array_equal(tiny.numpy(weight), tiny.numpy(expected))


def test_a_folder_of_an_adapter(tuned, base, text_of_base):
    folder, model, chosen = tuned
    lm = RGemmaCausalLM.from_preset(folder, **chosen)
    check(lm, model, text_of_base)
    other = RGemmaCausalLM.from_preset(base)
    other.load_from_peft(folder, **chosen)
    check_same(other, lm)
    check_same(RGemmaBackbone.from_preset(folder, **chosen), lm.backbone)


@pytest.fixture
def hub(empty_hub, base):
    """A hub with the base, and an adapter without files."""
    empty_hub.name = "someone/adapter"
    other = loopback.Hub(main=loopback.files_of(base))
    other.name = "someone/base"
    empty_hub.others.append(other)
    return empty_hub


@pytest.mark.parametrize("handle", [HF, MODEL_SCOPE, KAGGLE])
def test_an_adapter_on_a_hub(tuned, base, hub, handle, tmp_path, text_of_base):
    folder, model, chosen = tuned
    folder = shutil.copytree(folder, tmp_path / "adapter")
    rename_base(folder, "someone/base")
    hub.files["main"] = {**loopback.files_of(folder), "optimizer.pt": b"x"}
    lm = RGemmaCausalLM.from_preset(handle, **chosen)
    if handle != KAGGLE:  # which sends whole repositories
        assert "optimizer.pt" not in hub.sent
    if handle == HF:
        check(lm, model, text_of_base)
    check_same(lm, RGemmaCausalLM.from_preset(tuned[0], **chosen))
    other = RGemmaCausalLM.from_preset(base)
    other.load_from_peft(handle, **chosen)
    check_same(other, lm)


@pytest.fixture(scope="module")
def plain(base, tmp_path_factory):
    """The folder of an adapter in PEFT's usual form."""
    folder = tmp_path_factory.mktemp("plain") / "adapter"
    fine_tuned(base, {}, {}).save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(plain, tmp_path):
    """A copy to change."""
    return shutil.copytree(plain, tmp_path / "adapter")


@backend_independent
def test_revisions_of_the_adapter_and_of_its_base(adapter, base, hub):
    rename_base(adapter, "someone/base", revision="v1")
    hub.files = {"main": {}, "v1": loopback.files_of(adapter)}
    hub.others[0].files = {"main": {}, "v1": loopback.files_of(base)}
    for revision in ("v1", loopback.SHA["v1"]):
        assert has_lora(RGemmaCausalLM.from_preset(HF, revision=revision))
    lm = RGemmaCausalLM.from_preset(base)
    lm.load_from_peft(HF, revision="v1")
    assert has_lora(lm)
    with pytest.raises(ValueError, match=r"holds no adapter_config\.json"):
        lm.load_from_peft(HF)
    with pytest.raises(ValueError, match="`revision` is for what lies on a hub"):
        lm.load_from_peft(adapter, revision="v1")
    rename_base(adapter, "someone/base", revision="v7")
    hub.files["v1"] = loopback.files_of(adapter)
    shutil.rmtree(adapter.parent / "hf")
    with pytest.raises(FileNotFoundError, match=r"revision 'v7' of 'hf://someone/base'.*another"):
        RGemmaCausalLM.from_preset(HF, revision="v1")


def has_lora(lm):
    return bool(lora_layers_by_path(lm.backbone))


@backend_independent
def test_settings_are_those_of_the_base(adapter, base):
    lm = RGemmaCausalLM.from_preset(adapter, dtype="bfloat16", dropout=0.25, preprocessor=None)
    assert lm.preprocessor is None and lm.backbone.dropout == 0.25 and has_lora(lm)
    assert lm.backbone.token_embedding.embeddings.dtype == "bfloat16"
    assert not has_lora(RGemmaCausalLM.from_preset(adapter, load_weights=False))
    for cls in (RGemmaTokenizer, RGemmaCausalLMPreprocessor):
        tokenizer = cls.from_preset(adapter)
        assert getattr(tokenizer, "tokenizer", tokenizer).proto == tiny.proto()
    rename_base(adapter, "rgemma_tiny_en")
    with pytest.raises(ValueError, match=r"of the shapes|which this model has not|no linear layer"):
        RGemmaCausalLM.from_preset(adapter)


@backend_independent
@pytest.mark.parametrize(
    "name, error, message",
    [
        (None, ValueError, "base of the adapter is not known"),
        ("", ValueError, "base of the adapter is not known"),
        ("/nowhere/base", FileNotFoundError, "no folder '/nowhere/base' on this machine"),
        ("./outputs/base", FileNotFoundError, r"no folder '\./outputs/base' on this machine"),
        ("someone/typo", FileNotFoundError, "no 'hf://someone/typo'"),
        ("hf://someone/typo", FileNotFoundError, "no 'hf://someone/typo'"),
        ("griffin_7b", ValueError, "no public weights"),
        ("adapter itself", ValueError, "is an adapter itself"),
    ],
)
def test_a_base_that_cannot_be_found(name, error, message, adapter, hub):
    rename_base(adapter, str(adapter) if name == "adapter itself" else name)
    for cls in (RGemmaCausalLM, RGemmaBackbone):
        way_out = r"base_model_name_or_path=.*another base.*`load_from_peft\('.*adapter'\)`"
        with pytest.raises(error, match=f"(?s){message}.*{way_out}"):
            cls.from_preset(adapter)


@backend_independent
def test_a_gated_base_and_a_lost_connection(adapter, hub, monkeypatch):
    rename_base(adapter, "someone/base")
    hub.others[0].is_gated = True
    with pytest.raises(PermissionError, match=r"Accept its licence.*base_model_name_or_path"):
        RGemmaCausalLM.from_preset(adapter)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match=r"(?s)Check the connection.*base_model_name_or_path"):
        RGemmaCausalLM.from_preset(adapter)


@backend_independent
def test_a_named_adapter_is_chosen(base, tmp_path, hub):
    model = fine_tuned(base, {}, {"adapter_name": "words"})
    model.add_adapter("deeds", peft.LoraConfig(r=3, target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "both")
    lm = RGemmaCausalLM.from_preset(base)
    rename_base(tmp_path / "both", "someone/base")
    hub.files["main"] = loopback.files_of(tmp_path / "both")
    for path in (tmp_path / "both", HF):
        names = r"\['deeds', 'words'\].*`subfolder='(deeds|words)'`"
        with pytest.raises(ValueError, match=names):
            lm.load_from_peft(path)
        with pytest.raises(ValueError, match=names):
            RGemmaCausalLM.from_preset(path)
        with pytest.raises(FileNotFoundError, match=r"no folder 'typo'.*\['deeds', 'words'\]"):
            RGemmaCausalLM.from_preset(path, subfolder="typo")
        with pytest.raises(ValueError, match=r"`subfolder` must be.*\.\./both"):
            RGemmaCausalLM.from_preset(path, subfolder="../both")
        found = RGemmaCausalLM.from_preset(path, subfolder="deeds")
        ranks = {layer.lora_rank for layer in lora_layers_by_path(found.backbone).values()}
        assert ranks == {3}


@backend_independent
def test_a_model_beside_the_adapter_may_be_its_base(adapter, base):
    """As where somebody wrote both into one folder; transformers takes the adapter, too."""
    shutil.copytree(base, adapter, dirs_exist_ok=True)
    rename_base(adapter, str(adapter))
    assert has_lora(RGemmaCausalLM.from_preset(adapter))


@backend_independent
def test_what_is_no_adapter_is_not_fetched(hub, base):
    hub.files["main"] = loopback.files_of(base)
    with pytest.raises(ValueError, match=r"holds no adapter_config\.json"):
        RGemmaCausalLM.from_preset(base).load_from_peft(HF)
    assert hub.sent and not any(name.endswith(loopback.LARGE) for name in hub.sent)


@backend_independent
def test_a_command_converts_an_adapter(adapter, base, tmp_path):
    out = str(tmp_path / "out")
    assert main(["convert", str(adapter), out, "--to", "transformers"]) == 0
    assert open_checkpoint(out).dtype == "float32"
    merged, expected = RGemmaCausalLM.from_preset(out), RGemmaCausalLM.from_preset(adapter)
    expected.backbone.merge_lora()
    assert not has_lora(merged)
    for one, other in zip(merged.weights, expected.weights, strict=True):
        # Rounded to float32 once more.
        np.testing.assert_allclose(tiny.numpy(one), tiny.numpy(other), rtol=1e-6, atol=1e-6)
