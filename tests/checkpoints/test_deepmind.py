"""DeepMind's Orbax folders and `.pt` files load as presets, to the bit; broken ones are refused."""

import copy
import json
import pathlib
import pickle
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint
import pytest
import torch
from recurrentgemma.jax import utils
from recurrentgemma.torch import griffin as torch_griffin

import tiny
from keras_rgemma import RGemmaBackbone, RGemmaCausalLM, RGemmaTokenizer
from keras_rgemma.checkpoints import deepmind as ours
from keras_rgemma.checkpoints import export, names
from keras_rgemma.config import RGemmaConfig
from parity import deepmind

# What the shapes of weights do not tell; a window that is shorter than the texts here.
UNTOLD = {"sliding_window_size": 6, "final_logit_soft_cap": 4.0, "scale_embeddings": False}
CONFIG = RGemmaConfig(
    vocabulary_size=400,
    num_layers=4,
    hidden_dim=16,
    intermediate_dim=40,
    num_query_heads=2,
    head_dim=8,
    lru_dim=24,
    **UNTOLD,
)
# As in parity/test_logits.py: float32, relative to the logit where it is larger than 1.
TOLERANCE = 2e-5


def random_tree(config=CONFIG, dtype="float32"):
    """A tree of DeepMind's model with random values; theirs begins with zeros in many places."""
    model, random = deepmind.model(config), np.random.RandomState(0)
    ids = jnp.zeros((1, 3), "int32")
    shapes = jax.eval_shape(model.init, jax.random.key(0), ids, ids)["params"]
    return jax.tree.map(lambda x: jnp.asarray(random.normal(0, 0.3, x.shape), dtype), shapes)


def save_orbax(folder, tree, use_ocdbt):
    handler = orbax.checkpoint.PyTreeCheckpointHandler(use_ocdbt=use_ocdbt, use_zarr3=False)
    orbax.checkpoint.Checkpointer(handler).save(folder, tree)


def check_logits(expected, lm):
    ids = token_ids()
    found = tiny.numpy(lm.score(ids))
    assert (np.abs(found - expected) <= TOLERANCE * np.maximum(1, np.abs(expected))).all()


def token_ids():
    return np.random.RandomState(0).randint(0, 400, (2, 9)).astype("int32")


def check_values(backbone, tensors):
    variables = {variable.path: variable for variable in backbone.variables}
    for weight in names.weights(backbone.config):
        place = weight.flax
        value = np.asarray(tensors[place.name], "float32")
        value = value if place.part is None else value[place.part]
        np.testing.assert_array_equal(
            tiny.numpy(variables[weight.path]), place.transform.from_file(value)
        )


def flat(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(key.key for key in path): value for path, value in leaves}


@pytest.fixture(scope="module")
def kaggle(tmp_path_factory):
    """A folder as Kaggle gives it, saved by DeepMind's own function, and the tree in it."""
    folder, tree = tmp_path_factory.mktemp("kaggle"), random_tree()
    utils.save_parameters(str(folder / "2b-it"), tree)
    (folder / "tokenizer.model").write_bytes(tiny.proto())
    return folder, tree


def test_a_kaggle_folder_loads_with_its_tokenizer_and_generates(kaggle):
    folder, tree = kaggle
    program = deepmind.compiled(lambda tree, ids: logits(CONFIG, tree, ids))
    backbone = RGemmaBackbone.from_preset(str(folder), **UNTOLD)
    check_logits(np.asarray(program(tree, token_ids())), RGemmaCausalLM(backbone))
    check_values(backbone, flat(tree))
    for path in (folder, folder / "2b-it"):
        lm = RGemmaCausalLM.from_preset(str(path))
        assert lm.preprocessor.tokenizer.proto == tiny.proto()
        assert lm.backbone.config.sliding_window_size == 2048
        assert lm.backbone.config.layer_types == CONFIG.layer_types
    assert lm.generate("The quick", max_new_tokens=2).startswith("The quick")
    assert RGemmaTokenizer.from_preset(folder).end_token2_id == 5


def logits(config, tree, ids):
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    return deepmind.model(config).apply({"params": tree}, ids, positions, return_cache=False)[0]


@pytest.mark.parametrize("use_ocdbt", [True, False])
@pytest.mark.parametrize("wrapped", [True, False])
def test_every_layout_of_orbax_is_kept_to_the_bit(tmp_path, use_ocdbt, wrapped):
    tree = random_tree(dtype="bfloat16")
    save_orbax(tmp_path / "2b", {"params": tree} if wrapped else tree, use_ocdbt)
    check_values(RGemmaBackbone.from_preset(str(tmp_path), dtype="bfloat16"), flat(tree))


@pytest.fixture(scope="module")
def torch_model():
    """DeepMind's torch model with random values."""
    torch.manual_seed(0)
    model = torch_griffin.Griffin(deepmind.griffin_config(CONFIG), gradient_checkpointing=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return model.eval()


def torch_logits(model):
    ids = torch.from_numpy(token_ids()).long()
    positions = torch.arange(ids.shape[1]).expand(ids.shape)
    with torch.no_grad():
        return model(ids, positions)[0].numpy()


def test_a_torch_file_loads_with_its_tokenizer(tmp_path, torch_model):
    torch.save(torch_model.state_dict(), tmp_path / "2b.pt")
    (tmp_path / "tokenizer.model").write_bytes(tiny.proto())
    for path in (tmp_path, tmp_path / "2b.pt"):
        backbone = RGemmaBackbone.from_preset(path, **UNTOLD)
        lm = RGemmaCausalLM.from_preset(path)
        assert lm.preprocessor.tokenizer.proto == tiny.proto()
    check_logits(torch_logits(torch_model), RGemmaCausalLM(backbone))
    half = {name: tensor.bfloat16() for name, tensor in torch_model.state_dict().items()}
    torch.save(half, tmp_path / "2b.pt")
    backbone = RGemmaBackbone.from_preset(tmp_path, dtype="bfloat16")
    for weight in names.weights(backbone.config):
        value = half[weight.torch.name].float().numpy()
        value = value if weight.torch.part is None else value[weight.torch.part]
        (variable,) = (v for v in backbone.variables if v.path == weight.path)
        np.testing.assert_array_equal(tiny.numpy(variable), weight.torch.transform.from_file(value))


def test_deepminds_own_code_loads_what_is_written(tmp_path, torch_model):
    lm = tiny.randomize(RGemmaCausalLM(RGemmaBackbone(**CONFIG.to_dict())))
    for format in ("flax", "torch"):
        export.export(lm.backbone, None, tmp_path / format, format)
    # What their `load_parameters` calls; it does not understand the metadata of newer Orbax itself.
    tree = orbax.checkpoint.PyTreeCheckpointer().restore(tmp_path / "flax" / "params")
    expected = flat(deepmind.params(lm.backbone))
    found = flat(tree["params"])
    assert set(found) == set(expected)
    for name, value in found.items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(expected[name]))
    weights = torch.load(tmp_path / "torch" / "params.pt", weights_only=True)
    model = copy.deepcopy(torch_model)
    model.load_state_dict(weights, strict=True)
    check_logits(torch_logits(model), lm)


@pytest.mark.parametrize("format", ["flax", "torch"])
@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"block_types": ("attention",)},
        {"block_types": ("recurrent",), "conv_width": 3},
        {"block_types": ("attention", "recurrent", "recurrent", "attention", "recurrent")},
        {"num_query_heads": 4, "num_key_value_heads": 2, "head_dim": 12, "lru_dim": 32},
    ],
    ids=str,
)
def test_the_architecture_is_read_from_the_shapes(sizes, format):
    config = RGemmaConfig(**{**tiny.SIZES, "num_layers": 5, "head_dim": 8, **sizes})
    shapes = {name: shape for name, (shape, _) in names.tensors(config, format).items()}
    found = ours.config_from(shapes)
    assert found.layer_types == config.layer_types
    assert found.parameter_count == config.parameter_count
    assert {n: s for n, (s, _) in names.tensors(found, format).items()} == shapes
    assert len(found.block_types) <= len(config.block_types)


def test_what_is_no_checkpoint_of_this_model_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"embedder\.input_embedding.*no such tensor"):
        ours.config_from({"encoder/w": (2, 3)})
    config = {name: x[0] for name, x in names.tensors(CONFIG, "flax").items()}
    config["blocks.0/mlp_block/ffw_up/w"] = (16, 40)
    with pytest.raises(ValueError, match=r"ffw_up\.w.*3 axes.*\(16, 40\)"):
        ours.config_from(config)


def test_a_tensor_that_is_missing_strange_or_broken_is_named(tmp_path, kaggle):
    tree = random_tree()
    del tree["blocks.1"]["mlp_block"]["ffw_down"]["bias"]
    tree["blocks.2"]["more"] = jnp.zeros(3)
    save_orbax(tmp_path / "2b", tree, use_ocdbt=True)
    with pytest.raises(
        ValueError, match=r"missing: blocks\.1/mlp_block/ffw_down/bias.*blocks\.2/more"
    ):
        RGemmaBackbone.from_preset(tmp_path)
    tree = random_tree()
    tree["final_norm"]["scale"] = tree["final_norm"]["scale"].at[3].set(jnp.nan)
    save_orbax(tmp_path / "nan" / "2b", tree, use_ocdbt=True)
    with pytest.raises(ValueError, match=r"final_norm/scale.*NaN"):
        RGemmaBackbone.from_preset(tmp_path / "nan")
    for kind in ("several", "cut"):
        shutil.copytree(kaggle[0], tmp_path / kind)
    shutil.copytree(kaggle[0] / "2b-it", tmp_path / "several" / "2b")
    with pytest.raises(ValueError, match=r"several checkpoints: \['2b', '2b-it'\]"):
        RGemmaBackbone.from_preset(tmp_path / "several")
    for file in (tmp_path / "cut" / "2b-it").rglob("d/*"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"Orbax cannot read.*2b-it.*again"):
        RGemmaBackbone.from_preset(tmp_path / "cut")
    tree = random_tree()
    tree["blocks.0"]["mlp_block"]["ffw_down"]["kernel"] *= 0
    save_orbax(tmp_path / "zero" / "2b", tree, use_ocdbt=True)
    RGemmaBackbone.from_preset(tmp_path / "zero")
    # A folder of an older Orbax, from which a gap is read as zeros.
    metadata = tmp_path / "zero" / "2b" / "_METADATA"
    contents = json.loads(metadata.read_text())
    del contents["store_array_data_equal_to_fill_value"]
    metadata.write_text(json.dumps(contents))
    with pytest.raises(ValueError, match=r"ffw_down/kernel.*zero throughout.*missing"):
        RGemmaBackbone.from_preset(tmp_path / "zero")
    save_orbax(tmp_path / "lists" / "2b", {"params": random_tree(), "opt": [1, None]}, True)
    with pytest.raises(ValueError, match=r"Orbax cannot read.*opt"):
        RGemmaBackbone.from_preset(tmp_path / "lists")
    save_orbax(tmp_path / "huge" / "2b", random_tree(), use_ocdbt=False)
    (array,) = (tmp_path / "huge" / "2b").glob("*input_embedding/.zarray")
    array.write_text(json.dumps({**json.loads(array.read_text()), "shape": [10**9, 10**6]}))
    with pytest.raises(ValueError, match=r"2b' is too small.*'embedder/input_embedding', of shape"):
        RGemmaBackbone.from_preset(tmp_path / "huge")


class Code:
    """A pickle that leaves a file behind when it is loaded by `pickle`."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def test_torch_files_that_are_hostile_or_broken(tmp_path, torch_model):
    file, mark = tmp_path / "2b.pt", tmp_path / "ran"
    torch.save({"final_norm.scale": Code(mark)}, file)
    with pytest.raises(ValueError, match=r"2b\.pt.*no code in it was run"):
        RGemmaBackbone.from_preset(tmp_path)
    file.write_bytes(pickle.dumps(Code(mark)))
    with pytest.raises(ValueError, match=r"2b\.pt.*no code in it was run"):
        RGemmaBackbone.from_preset(file)
    assert not mark.exists()
    for content in ([torch.zeros(2)], {"step": 3}, {"ids": torch.zeros(2, dtype=torch.int64)}):
        torch.save(content, file)
        with pytest.raises(ValueError, match=r"2b\.pt.*floating-point tensors"):
            RGemmaBackbone.from_preset(file)
    huge = {"embedder.input_embedding": torch.zeros(1).expand(10**9, 10**6)}
    torch.save({**torch_model.state_dict(), **huge}, file)
    with pytest.raises(ValueError, match=r"2b\.pt' is too small.*'embedder\.input_embedding'"):
        RGemmaBackbone.from_preset(file)
    torch.save(torch_model.state_dict(), file)
    file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(ValueError, match=r"2b\.pt"):
        RGemmaBackbone.from_preset(file)
    shutil.copy(file, tmp_path / "9b.pt")
    with pytest.raises(ValueError, match=r"several checkpoints: \['2b\.pt', '9b\.pt'\]"):
        RGemmaBackbone.from_preset(tmp_path)
