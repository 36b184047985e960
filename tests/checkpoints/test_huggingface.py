"""Folders that transformers saved load as presets, to the bit; broken ones are refused by name."""

import json
import re
import shutil

import keras
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

import tiny
from keras_rgemma import RGemmaBackbone, RGemmaCausalLM, RGemmaTokenizer
from keras_rgemma.checkpoints import names
from keras_rgemma.checkpoints import safetensors as safetensors_files
from keras_rgemma.config import RGemmaConfig

# As in parity/test_logits.py: float32, relative to the logit where it is larger than 1.
TOLERANCE = 2e-5
SIZES = {
    "vocab_size": 400,
    "num_hidden_layers": 4,
    "hidden_size": 16,
    "intermediate_size": 2 * 20,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "lru_width": 24,
    "attention_window_size": 6,
}
OTHERS = {
    "num_key_value_heads": 2,
    "hidden_activation": "silu",
    "block_types": ["recurrent", "attention"],
    "conv1d_width": 3,
    "logits_soft_cap": 4.0,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 50.0, "partial_rotary_factor": 1.0},
}


def make(folder, dtype="float32", shard="1GB", **changes):
    """Saves a random model of transformers, and returns it."""
    torch.manual_seed(0)
    config = transformers.RecurrentGemmaConfig(**{**SIZES, **changes})
    model = transformers.RecurrentGemmaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += 0.1 * torch.randn_like(parameter)
            if name.endswith("recurrent_param"):
                parameter.clamp_(-3.0, 1.0)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard)
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of transformers and the logits of its model; others copy and break it."""
    folder = tmp_path_factory.mktemp("huggingface")
    model = make(folder)
    (folder / "tokenizer.model").write_bytes(tiny.proto())
    # Theirs, beside it in every published repository. A Keras preset has a file of this name, too.
    (folder / "tokenizer.json").write_text("{}")
    # What their Trainer leaves beside the weights is no checkpoint of DeepMind's.
    for name in ("optimizer.pt", "scheduler.pt"):
        torch.save({}, folder / name)
    return folder, model


@pytest.fixture
def broken(saved, tmp_path):
    """A copy to break."""
    return shutil.copytree(saved[0], tmp_path / "broken")


def check_logits(folder, model):
    ids = np.random.RandomState(0).randint(0, 400, (2, 6)).astype("int32")
    with torch.no_grad():
        expected = model(torch.from_numpy(ids).long()).logits.numpy()
    lm = RGemmaCausalLM.from_preset(str(folder))
    found = tiny.numpy(lm.score(ids))
    assert (np.abs(found - expected) <= TOLERANCE * np.maximum(1, np.abs(expected))).all()
    return lm


def change(path, **changes):
    contents = json.loads(path.read_text())
    contents.update(changes)
    path.write_text(json.dumps({k: v for k, v in contents.items() if v != "gone"}))


def rewrite(path, edit):
    tensors = safetensors.numpy.load_file(path)
    edit(tensors)
    safetensors.numpy.save_file(tensors, path)


def test_a_folder_loads_with_its_tokenizer_and_generates(saved):
    folder, model = saved
    lm = check_logits(folder, model)
    assert lm.backbone.dtype_policy.name == "float32"
    assert lm.preprocessor.tokenizer.proto == tiny.proto()
    assert lm.generate("The quick", max_new_tokens=2).startswith("The quick")
    assert RGemmaTokenizer.from_preset(str(folder)).end_token2_id == 5


SPELLINGS = ("gelu_fast", "quick_gelu", "tanh", "gelu_python")


@pytest.mark.parametrize(
    "changes",
    [
        OTHERS,
        {"block_types": ["attention"]},
        *({"hidden_activation": name} for name in SPELLINGS),
    ],
)
def test_other_architectures_and_shards(tmp_path, changes):
    model = make(tmp_path, shard="20KB", **changes)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    check_logits(tmp_path, model)


def test_bfloat16_is_kept_to_the_bit(tmp_path):
    model = make(tmp_path, dtype="bfloat16")
    backbone = RGemmaBackbone.from_preset(str(tmp_path), dtype="bfloat16")
    variables = {variable.path: variable for variable in backbone.variables}
    state = model.state_dict()
    for weight in names.weights(backbone.config):
        variable, place = variables[weight.path], weight.huggingface
        assert keras.backend.standardize_dtype(variable.dtype) == "bfloat16"
        expected = place.transform.from_file(state[place.name].float().numpy())
        np.testing.assert_array_equal(tiny.numpy(variable), expected)


def test_a_loaded_model_trains_with_dropout(saved):
    backbone = RGemmaBackbone.from_preset(str(saved[0]), dropout=0.5)
    assert backbone.config.dropout == 0.5
    inputs = tiny.arrays(1, 5)
    first, second = (tiny.numpy(backbone(inputs, training=True)) for _ in range(2))
    assert np.abs(first - second).max() > 0.01


def test_a_folder_without_a_tokenizer_says_what_is_missing(broken):
    (broken / "tokenizer.model").unlink()
    with pytest.raises(ValueError, match=r"no tokenizer\.model.*Copy"):
        RGemmaTokenizer.from_preset(str(broken))
    assert RGemmaCausalLM.from_preset(str(broken)).preprocessor is None


def test_weights_are_not_read_where_none_are_wanted(broken):
    (broken / "model.safetensors").unlink()
    assert RGemmaBackbone.from_preset(str(broken), load_weights=False).num_layers == 4
    with pytest.raises(ValueError, match=r"neither model\.safetensors nor"):
        RGemmaBackbone.from_preset(str(broken))


def test_the_spelling_of_the_2b_repository(broken, saved):
    block_types = json.loads((broken / "config.json").read_text())["block_types"]
    change(
        broken / "config.json",
        block_types="gone",
        _block_types=block_types,
        rope_parameters="gone",
        rope_theta=10000.0,
        partial_rotary_factor=0.5,
        embeddings_scale_by_sqrt_dim=True,
    )
    check_logits(broken, saved[1])


def test_a_repeated_embedding_is_accepted_and_another_is_refused(broken, saved):
    path = broken / "model.safetensors"
    rewrite(path, lambda x: x.update({names.LM_HEAD: x["model.embed_tokens.weight"].copy()}))
    check_logits(broken, saved[1])
    rewrite(path, lambda x: x[names.LM_HEAD].__setitem__((399, 15), 7.0))
    with pytest.raises(ValueError, match=r"lm_head\.weight.*differs"):
        RGemmaBackbone.from_preset(str(broken))
    for wrong in (np.zeros((403, 16), "float32"), np.zeros((3, 16), "float32"), np.float32(3)):
        rewrite(path, lambda x, wrong=wrong: x.update({names.LM_HEAD: np.array(wrong)}))
        with pytest.raises(ValueError, match=r"of another shape: lm_head\.weight"):
            RGemmaBackbone.from_preset(str(broken))


def test_a_cap_that_is_not_named_is_the_usual_one(broken):
    change(broken / "config.json", logits_soft_cap="gone")
    assert RGemmaBackbone.from_preset(str(broken)).final_logit_soft_cap == 30.0


def test_one_file_is_read_rather_than_an_index_beside_it(broken, saved):
    (broken / safetensors_files.INDEX).write_text('{"weight_map": {"a": "b"}}')
    check_logits(broken, saved[1])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"attention_bias": True}, "attention_bias"),
        ({"model_type": "gemma"}, r"'recurrent_gemma'.*'gemma'"),
        ({"intermediate_size": 41}, r"even.*41"),
        ({"hidden_activation": "xielu"}, "'xielu'"),
        ({"hidden_size": "gone"}, "hidden_size"),
        ({"num_hidden_layers": 10**9}, "1000000000 layers"),
        ({"hidden_size": 10**4}, "of another shape"),
        ({"hidden_size": 10**9}, r"more than 1e\+13 parameters"),
        ({"num_hidden_layers": 10**400}, r"more than 1e\+13 parameters"),
        ({"rms_norm_eps": 10**400}, "layer_norm_epsilon"),
        ({"attention_window_size": 10**13}, "sliding_window_size.*at most"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "yarn"),
        ({"attention_window_size": 0}, "sliding_window_size"),
        ({"intermediate_size": "40"}, "intermediate_size.*'40'"),
        ({"hidden_activation": ["silu"]}, "hidden_activation.*silu"),
        ({"block_types": 3}, "block_types.*3"),
        ({"rope_parameters": "default"}, "rope_parameters.*'default'"),
    ],
)
def test_configs_that_cannot_be_loaded(broken, changes, message):
    change(broken / "config.json", **changes)
    with pytest.raises(ValueError, match=message):
        RGemmaBackbone.from_preset(str(broken))


def nan(tensors):
    tensors["model.layers.1.mlp_block.up_proj.weight"][3, 2] = np.nan


def transposed(tensors):
    name = "model.layers.0.mlp_block.down_proj.weight"
    tensors[name] = np.ascontiguousarray(tensors[name].T)


@pytest.mark.parametrize(
    "edit, message",
    [
        (nan, r"layers\.1\.mlp_block\.up_proj\.weight.*NaN"),
        (
            transposed,
            r"another shape: model\.layers\.0\.mlp_block\.down_proj\.weight \(20, 16\)",
        ),
        (lambda x: x.pop("model.final_norm.weight"), r"missing: model\.final_norm\.weight"),
        (lambda x: x.update(extra=np.zeros(2)), "unknown: extra"),
        (lambda x: x.update({"model.final_norm.weight": np.zeros(16, "int8")}), "I8"),
    ],
)
def test_weights_that_do_not_fit_are_named(broken, edit, message):
    rewrite(broken / "model.safetensors", edit)
    with pytest.raises(ValueError, match=message):
        RGemmaBackbone.from_preset(str(broken))


def test_files_that_are_broken(tmp_path):
    make(tmp_path, shard="20KB")
    index = tmp_path / safetensors_files.INDEX
    weight_map = json.loads(index.read_text())["weight_map"]
    shard = tmp_path / sorted(weight_map.values())[0]
    outside = {**weight_map, "model.final_norm.weight": "../elsewhere.safetensors"}
    change(index, weight_map=outside)
    with pytest.raises(ValueError, match=r"\.\./elsewhere\.safetensors.*not a plain name"):
        RGemmaBackbone.from_preset(str(tmp_path))
    for name in (["a"], "", "..", "a\\b"):
        change(index, weight_map={**weight_map, "model.final_norm.weight": name})
        with pytest.raises(ValueError, match=f"{re.escape(repr(name))}.*not a plain name"):
            RGemmaBackbone.from_preset(str(tmp_path))
    change(index, weight_map={**weight_map, "model.nowhere": shard.name})
    with pytest.raises(ValueError, match=r"do not hold.*model\.nowhere.*Fetch the index"):
        RGemmaBackbone.from_preset(str(tmp_path))
    change(index, weight_map=weight_map)
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(ValueError, match=f"{shard.name}.*broken.*again"):
        RGemmaBackbone.from_preset(str(tmp_path))
    shard.unlink()
    with pytest.raises(ValueError, match=f"{shard.name}.*missing"):
        RGemmaBackbone.from_preset(str(tmp_path))
    for broken in ("{", "[" * 200_000, "\ud800".encode("utf-8", "surrogatepass"), b"\xff", "[]"):
        content = broken if isinstance(broken, bytes) else broken.encode()
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"config\.json.*JSON"):
            RGemmaBackbone.from_preset(str(tmp_path))


def test_a_tokenizer_of_another_model_or_a_broken_one(broken, monkeypatch):
    """It is refused before any weights are read."""
    monkeypatch.setattr(safetensors_files.SafetensorsFolder, "read", None)
    change(broken / "config.json", vocab_size=399)
    with pytest.raises(ValueError, match=r"400 tokens.*only 399.*belongs to this model"):
        RGemmaCausalLM.from_preset(str(broken))
    for contents in (b"", b"no model", tiny.proto()[:1000], tiny.proto(bos=False)):
        (broken / "tokenizer.model").write_bytes(contents)
        with pytest.raises(ValueError, match=r"tokenizer\.model|<bos>"):
            RGemmaCausalLM.from_preset(str(broken))


def test_the_table_has_every_weight_and_the_published_counts():
    backbone = tiny.backbone()
    ours = {v.path: tuple(v.shape) for v in backbone.weights if "seed" not in v.path}
    assert {w.path: w.shape for w in names.weights(backbone.config)} == ours
    for sizes, counts in (
        ((256_000, 26, 2560, 7680, 10), (432, 432, 484)),
        ((256_000, 38, 4096, 12_288, 16), (628, 628, 704)),
    ):
        config = RGemmaConfig(*sizes)
        assert tuple(len(names.tensors(config, f)) for f in names.FORMATS) == counts


def test_every_transform_has_its_inverse_and_knows_the_shape():
    for weight in names.weights(tiny.backbone().config):
        ours = np.arange(np.prod(weight.shape)).reshape(weight.shape)
        for place in map(weight.place, names.FORMATS):
            theirs = place.transform.to_file(ours)
            assert theirs.shape == tuple(place.transform.file_shape(weight.shape))
            np.testing.assert_array_equal(place.transform.from_file(theirs), ours)
