"""Models are written for transformers to the bit, completely or not at all."""

import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

import tiny
from keras_rgemma import RGemmaBackbone, RGemmaCausalLM, files
from keras_rgemma.checkpoints import safetensors as safetensors_files

# As in parity/test_logits.py: float32, relative to the logit where it is larger than 1.
TOLERANCE = 2e-5
OTHERS = {
    "num_query_heads": 4,
    "num_key_value_heads": 2,
    "lru_dim": 32,
    "conv_width": 3,
    "activation": "silu",
    "rope_max_wavelength": 50.0,
    "rope_fraction": 1.0,
    "layer_norm_epsilon": 1e-4,
    "final_logit_soft_cap": 4.0,
    "block_types": ("attention", "recurrent"),
}


@pytest.fixture(scope="module")
def lm():
    return tiny.randomize(tiny.causal_lm())


def loaded(folder, **kwargs):
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, **kwargs
    )
    assert not any(info.values()), info
    return model


def check_logits(model, lm):
    ids = np.random.RandomState(0).randint(0, 400, (2, 5)).astype("int32")
    with torch.no_grad():
        theirs = model(torch.from_numpy(ids).long()).logits.numpy()
    found = tiny.numpy(lm.score(ids))
    assert (np.abs(found - theirs) <= TOLERANCE * np.maximum(1, np.abs(theirs))).all()


def check_same_weights(one, other):
    pairs = zip(one.weights, other.weights, strict=True)
    for first, second in pairs:
        assert first.path == second.path and first.dtype == second.dtype
        np.testing.assert_array_equal(tiny.numpy(first), tiny.numpy(second))


@pytest.mark.parametrize("shard_bytes", [2**30, 10_000])
def test_transformers_loads_what_is_exported(lm, tmp_path, monkeypatch, shard_bytes):
    monkeypatch.setattr(safetensors_files, "SHARD_BYTES", shard_bytes)
    lm.export_to_transformers(tmp_path / "out")
    sizes = sorted(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors"))
    assert (len(sizes) > 2) == (shard_bytes == 10_000)
    # The headers aside, only the file of the embedding, a tensor of 25,600 bytes, is larger.
    assert all(size < shard_bytes + 2000 for size in sizes[:-1])
    check_logits(loaded(tmp_path / "out"), lm)
    again = RGemmaCausalLM.from_preset(str(tmp_path / "out"))
    check_same_weights(again, lm)
    assert again.backbone.config.parameter_count == lm.backbone.config.parameter_count
    assert again.preprocessor.tokenizer.proto == lm.preprocessor.tokenizer.proto


def test_other_architectures(tmp_path):
    lm = tiny.randomize(tiny.causal_lm(**OTHERS))
    lm.backbone.export_to_transformers(tmp_path / "out")
    check_logits(loaded(tmp_path / "out"), lm)
    again = RGemmaBackbone.from_preset(tmp_path / "out")
    check_same_weights(again, lm.backbone)
    ours = {**lm.backbone.config.to_dict(), "head_dim": None}
    assert again.config.to_dict() == ours


def test_the_tokenizer_and_what_ends_a_text(lm, tmp_path):
    lm.export_to_transformers(tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in (
        "The quick  brown fox",
        "<start_of_turn>user\nA river?<end_of_turn>\n",
        "é漢 😀",
        "",
    ):
        assert theirs(text)["input_ids"] == lm.preprocessor.prompt_token_ids([text])[0].tolist()
    ends = transformers.GenerationConfig.from_pretrained(tmp_path / "out")
    assert (ends.bos_token_id, ends.pad_token_id, ends.eos_token_id) == (2, 0, [1, 5])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(tmp_path, dtype):
    backbone = tiny.randomize(tiny.backbone(dtype=dtype))
    backbone.export_to_transformers(tmp_path / "out")
    check_same_weights(RGemmaBackbone.from_preset(tmp_path / "out", dtype=dtype), backbone)
    assert loaded(tmp_path / "out").dtype == getattr(torch, dtype)
    backbone.export_to_transformers(tmp_path / "wide", dtype="float32")
    wide = RGemmaBackbone.from_preset(tmp_path / "wide")
    for one, other in zip(wide.weights, backbone.weights, strict=True):
        np.testing.assert_array_equal(tiny.numpy(one), tiny.numpy(other))


def test_lora_is_merged_into_what_is_written_and_stays_in_the_model(tmp_path):
    lm = tiny.causal_lm()
    lm.backbone.enable_lora(4)
    lm.backbone.token_embedding.enable_lora(2, lora_alpha=3)
    tiny.randomize(lm)
    before = [tiny.numpy(weight) for weight in lm.weights]
    lm.export_to_transformers(tmp_path / "out")
    check_logits(loaded(tmp_path / "out"), lm)
    for weight, value in zip(lm.weights, before, strict=True):
        np.testing.assert_array_equal(tiny.numpy(weight), value)


def test_models_that_cannot_be_written_leave_nothing(tmp_path, lm):
    for name, change in (
        ("head_dim", {"head_dim": 4}),
        ("scale_embeddings", {"scale_embeddings": False}),
        ("final_logit_soft_cap", {"final_logit_soft_cap": None}),
    ):
        with pytest.raises(ValueError, match=f"`{name}`"):
            tiny.backbone(**change).export_to_transformers(tmp_path / "out")
    with pytest.raises(ValueError, match="'int8'"):
        lm.export_to_transformers(tmp_path / "out", dtype="int8")
    quantized = tiny.causal_lm(None)
    quantized.quantize("int8", filters="ffw_down")
    with pytest.raises(ValueError, match=r"quantized to int8"):
        quantized.export_to_transformers(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_kept_unless_it_may_be_replaced(tmp_path, lm, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    lm.export_to_transformers(out)  # an empty folder is as good as none
    (out / "more.json").write_text("{}")
    with pytest.raises(FileExistsError, match=r"out'.*Nothing was written"):
        lm.export_to_transformers(out)
    lm.export_to_transformers(out, overwrite=True)
    assert not (out / "more.json").exists() and (out / "config.json").exists()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    (out / "notes.txt").write_text("mine")
    for name in ("file", "folder", "out"):
        with pytest.raises(FileExistsError, match=rf"{name}' is .*Nothing was written"):
            lm.export_to_transformers(tmp_path / name, overwrite=True)
    (out / "notes.txt").unlink()
    monkeypatch.chdir(out)
    for place in (".", out):
        with pytest.raises(FileExistsError, match="is more than a checkpoint"):
            lm.export_to_transformers(place, overwrite=True)
    with pytest.raises(ValueError, match="destination is empty"):
        lm.export_to_transformers("", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "out"]


def test_numbers_that_are_too_large_for_float16(tmp_path):
    lm = tiny.causal_lm()
    kernel = lm.backbone.transformer_layers[0].mlp_block.ffw_down.kernel
    kernel.assign(tiny.numpy(kernel) + 1e5)
    with pytest.raises(ValueError, match=r"ffw_down/kernel'.*too large for float16"):
        lm.export_to_transformers(tmp_path / "half", dtype="float16")
    assert not list(tmp_path.iterdir())
    lm.export_to_transformers(tmp_path / "whole")
    lm.save_to_preset(tmp_path / "keras")
    for source in ("whole", "keras"):
        with pytest.raises(ValueError, match=r"in float16.*use bfloat16"):
            RGemmaBackbone.from_preset(tmp_path / source, dtype="float16")


def test_writing_that_fails_halfway_leaves_nothing_and_replaces_nothing(tmp_path, lm, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(safetensors_files, "SHARD_BYTES", 10_000)
    lm.export_to_transformers(out)
    whole = {path.name: path.read_bytes() for path in out.iterdir()}
    save_file, calls = safetensors.numpy.save_file, []

    def full_disk(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return save_file(*args, **kwargs)

    monkeypatch.setattr(safetensors.numpy, "save_file", full_disk)
    for target, overwrite in ((out, True), (tmp_path / "new", False)):
        calls.clear()
        with pytest.raises(OSError, match="No space left"):
            lm.export_to_transformers(target, overwrite=overwrite)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == whole
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_at_once_into_one_folder(tmp_path, lm):
    """The one that is ready first stays; the other says so."""
    out = tmp_path / "out"
    with pytest.raises(FileExistsError, match="out'"), files.new_folder(out) as partial:
        (partial / "config.json").write_text("{}")
        lm.export_to_transformers(out)
    check_same_weights(RGemmaCausalLM.from_preset(out), lm)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
