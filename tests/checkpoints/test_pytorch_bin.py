"""`pytorch_model.bin` loads to the bit; so do tensors of wrapped and of bare models."""

import collections
import json
import sys

import numpy as np
import pytest
import safetensors.torch
import torch

import tiny
from backend_independent import backend_independent
from checkpoints import loopback
from checkpoints.test_huggingface import change, check_logits, make
from keras_rgemma import RGemmaBackbone, RGemmaCausalLM
from keras_rgemma.checkpoints import names, pytorch_bin, torch_tensors
from keras_rgemma.checkpoints.folder import open_checkpoint
from keras_rgemma.checkpoints.source import TensorSource

SAFE, PICKLED = "model.safetensors", "pytorch_model.bin"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model of transformers, and the contents of its config.json."""
    folder = tmp_path_factory.mktemp("saved")
    model = make(folder)
    return model, (folder / "config.json").read_text()


@pytest.fixture
def folder(saved, tmp_path):
    """A folder with a config and without weights."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(saved[1])
    return tmp_path / "model"


def save_shards(folder, tensors, count=3):
    shards = [dict(list(tensors.items())[i::count]) for i in range(count)]
    files = [f"pytorch_model-{i + 1:05d}-of-{count:05d}.bin" for i in range(count)]
    for file, shard in zip(files, shards, strict=True):
        torch.save(shard, folder / file)
    weight_map = {name: file for file, x in zip(files, shards, strict=True) for name in x}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / f"{PICKLED}.index.json").write_text(json.dumps(index))
    return files


def test_one_file(folder, saved):
    tensors = saved[0].state_dict()
    assert tensors[names.LM_HEAD].data_ptr() == tensors[names.EMBEDDING].data_ptr()
    torch.save(tensors, folder / PICKLED)  # with the head, which is the embedding once more
    check_logits(folder, saved[0])


def test_several_files(folder, saved, monkeypatch):
    monkeypatch.setattr(torch_tensors, "_REOPEN_AFTER", 3_000)
    save_shards(folder, saved[0].state_dict())
    check_logits(folder, saved[0])


@backend_independent
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_it_is_a_source_of_tensors(folder, saved, dtype):
    expected = {name: x.to(getattr(torch, dtype)) for name, x in saved[0].state_dict().items()}
    save_shards(folder, expected)
    checkpoint = open_checkpoint(str(folder))
    assert checkpoint.dtype == dtype
    source = checkpoint.open_weights()
    assert isinstance(source, TensorSource) and source.format == "huggingface"
    assert set(source.shapes) == set(source.dtypes) == set(expected)
    for name, tensor in expected.items():
        array = source.read(name)
        assert (array.shape, array.dtype) == (source.shapes[name], source.dtypes[name])
        np.testing.assert_array_equal(array.astype("float64"), tensor.double().numpy())
        array[...] = 0  # memory of its own
        part = source.read(name, rows=slice(1, 3)).astype("float64")
        np.testing.assert_array_equal(part, tensor.double().numpy()[1:3])


@backend_independent
def test_safetensors_beside_it_are_preferred(folder, saved):
    (folder / PICKLED).write_bytes(b"x")
    saved[0].save_pretrained(folder)
    check_logits(folder, saved[0])


@backend_independent
def test_without_torch(folder, saved, monkeypatch):
    torch.save(saved[0].state_dict(), folder / PICKLED)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"'pytorch_model\.bin' is a file.*pip install torch"):
        open_checkpoint(str(folder)).open_weights()


class Code:
    """Runs when it is unpickled by a reader that runs code."""

    def __reduce__(self):
        return print, ("code was run",)


@backend_independent
def test_files_that_are_hostile_or_broken(folder, saved, capsys):
    tensors = saved[0].state_dict()

    def refused(reason):
        with pytest.raises(ValueError, match=reason):
            RGemmaBackbone.from_preset(folder)

    with pytest.raises(ValueError, match=r"neither model\.safetensors nor.*nor pytorch_model\.bin"):
        RGemmaBackbone.from_preset(folder)
    torch.save({**tensors, "code": Code()}, folder / PICKLED)
    refused(r"pytorch_model\.bin.*no code in it was run")
    assert "code was run" not in capsys.readouterr().out
    torch.save({**tensors, "step": 3}, folder / PICKLED)
    refused(r"floating-point tensors.*'step'")
    torch.save({**tensors, "model.huge": torch.zeros(1).expand(10**9, 10**6)}, folder / PICKLED)
    refused(r"too small for its tensors.*'model\.huge'")
    head = {names.LM_HEAD: torch.zeros(1).expand(10**9, 16)}
    torch.save({**tensors, **head}, folder / PICKLED)
    refused(r"of another shape: lm_head\.weight")
    torch.save({**tensors, "more": torch.zeros(2)}, folder / PICKLED)
    refused("unknown: more")
    (folder / PICKLED).unlink()
    first, *_ = save_shards(folder, tensors)
    index = folder / pytorch_bin.INDEX
    weight_map = json.loads(index.read_text())["weight_map"]
    change(index, weight_map={**weight_map, "model.final_norm.weight": "../elsewhere.bin"})
    refused(r"\.\./elsewhere\.bin.*not a plain name")
    change(index, weight_map={**weight_map, "model.nowhere": first})
    refused(r"do not hold.*model\.nowhere.*Fetch the index")
    change(index, weight_map=weight_map)
    (folder / first).unlink()
    refused(first)


@backend_independent
@pytest.mark.parametrize("handle", ["hf://someone/model", "modelscope://someone/model"])
def test_a_hub_that_has_nothing_else(folder, saved, empty_hub, handle):
    save_shards(folder, saved[0].state_dict())
    empty_hub.files["main"] = {**loopback.files_of(folder), "optimizer.bin": b"x"}
    check_logits(handle, saved[0])
    assert "optimizer.bin" not in empty_hub.sent


# === Names ===


def prefixed(prefix, tensors):
    return {prefix + name: tensor for name, tensor in tensors.items()}


def bare(tensors):
    """The tensors of a `RecurrentGemmaModel`, which has no head."""
    return {
        name.removeprefix("model."): tensor
        for name, tensor in tensors.items()
        if name != names.LM_HEAD
    }


def compiled_inside(tensors):
    return {name.replace("mlp_block.", "mlp_block._orig_mod."): x for name, x in tensors.items()}


WRAPPED = {
    "DataParallel": lambda x: prefixed("module.", x),
    "torch.compile": lambda x: prefixed("_orig_mod.", x),
    "compiled parts": compiled_inside,
    "PEFT, merged": lambda x: prefixed("base_model.model.", x),
    "all of them": lambda x: prefixed("module._orig_mod.base_model.model.", x),
    "bare": bare,
    "bare, DataParallel": lambda x: prefixed("module.", bare(x)),
    "bare, PEFT": lambda x: prefixed("base_model.model.", bare(x)),
}


def save(file, tensors):
    tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    (safetensors.torch.save_file if file.name == SAFE else torch.save)(tensors, file)


@pytest.mark.parametrize("case", WRAPPED)
def test_names_of_what_was_around_the_model(case, folder, saved):
    save(folder / SAFE, WRAPPED[case](saved[0].state_dict()))
    check_logits(folder, saved[0])


@backend_independent
@pytest.mark.parametrize("case", WRAPPED)
def test_names_in_pickled_files(case, folder, saved):
    save(folder / PICKLED, WRAPPED[case](saved[0].state_dict()))
    check_logits(folder, saved[0])


VALUE_HEAD = {"v_head.summary.weight": torch.zeros(1, 16), "v_head.summary.bias": torch.zeros(1)}


@pytest.mark.parametrize("file", [SAFE, PICKLED])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_value_head_is_left_out_with_a_warning(file, prefix, folder, saved):
    tensors = prefixed(prefix, {**saved[0].state_dict(), **VALUE_HEAD})
    save(folder / file, tensors)
    with pytest.warns(UserWarning, match=r"value head.*v_head\.summary\.bias.*summary\.weight"):
        lm = RGemmaCausalLM.from_preset(folder)
    for weight in names.weights(lm.backbone.config):
        variable = next(x for x in lm.backbone.variables if x.path == weight.path)
        place = weight.huggingface
        expected = place.transform.from_file(saved[0].state_dict()[place.name].numpy())
        np.testing.assert_array_equal(tiny.numpy(variable), expected)


Q = "model.layers.2.temporal_block.q_proj"
UNMERGED = {
    "LoRA": {f"{Q}.base_layer.weight": 8, f"{Q}.lora_A.default.weight": 2},
    "A alone": {f"{Q}.lora_A.default.weight": 2},
    "trained beside it": {"lm_head.original_module.weight": 2},
}


@backend_independent
@pytest.mark.parametrize("prefix", ["base_model.model.", "", "module.base_model.model."])
@pytest.mark.parametrize("case", UNMERGED)
def test_an_adapter_that_is_not_merged_is_refused(case, prefix, folder, saved):
    added = {name: torch.zeros(size, 16) for name, size in UNMERGED[case].items()}
    save(folder / SAFE, prefixed(prefix, {**saved[0].state_dict(), **added}))
    message = r"not merged, such as \[.*merge_and_unload\(\)\.save_pretrained.*`load_from_peft"
    with pytest.raises(ValueError, match=message):
        RGemmaBackbone.from_preset(folder)


@backend_independent
def test_names_that_are_not_known_stay_errors(folder, saved):
    tensors = saved[0].state_dict()
    twice = {"module.model.final_norm.weight": torch.zeros(16)}
    for added, message in (
        ({"v_header.weight": torch.zeros(2)}, "unknown: v_header"),
        ({"module.score.weight": torch.zeros(2)}, r"unknown: score\.weight"),
        (
            twice,
            r"'model\.final_norm\.weight' and 'module\.model\.final_norm\.weight' are the same",
        ),
    ):
        save(folder / SAFE, collections.ChainMap(tensors, added))
        with pytest.raises(ValueError, match=message):
            RGemmaBackbone.from_preset(folder)
