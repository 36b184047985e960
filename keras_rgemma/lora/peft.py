"""Adapters in the format of Hugging Face PEFT, for the model that `export_to_transformers` writes.

A linear layer there is a `torch.nn.Linear`: `lora_A` [rank, in] and `lora_B` [out, rank] are ours
transposed. The gates of the recurrence are parameters [H, I, J], which PEFT reaches by
`target_parameters`: it adds `einsum("ire,erj->eij", lora_B, lora_A)` of `lora_B` [I, rank * H] and
`lora_A` [H * rank, J]. (Before version 0.19.1 it took the last two axes the other way round.)
"""

import pathlib
import re

import numpy as np
import safetensors
import safetensors.numpy

from keras_rgemma.checkpoints.names import weights
from keras_rgemma.files import new_folder, read_json, write_json
from keras_rgemma.layers.block_diagonal import BlockDiagonal
from keras_rgemma.lora import adapters
from keras_rgemma.lora.adapters import Adapter
from keras_rgemma.lora.backbone import linear_layers

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
GATES_SINCE = "0.19.1"  # the version of PEFT that reads the gates as they are written here
_ROOT = "base_model.model."
_WRAPPED = ".base_layer"
# Options of PEFT for which A and B do not define the adapter unless they have these values.
_PLAIN = {
    "use_dora": False,
    "bias": "none",
    "lora_bias": False,
    "fan_in_fan_out": False,
    "modules_to_save": None,
    "layer_replication": None,
    "trainable_token_indices": None,
    "alora_invocation_tokens": None,
    "use_qalora": False,
    "use_bdlora": None,
    "arrow_config": None,
    "kasa_config": None,
    "monteclora_config": None,
    "velora_config": None,
}
# Initialisations that leave the base as it is.
_PLAIN_INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal")


def export(backbone, path, base_model, overwrite):
    """See `RGemmaCausalLM.export_to_peft`."""
    found = adapters.adapters(backbone)
    names = {path: _tensor_of(backbone.config, path) for path in found}
    tensors, modules, parameters = {}, [], []
    for layer, adapter in found.items():
        is_gate = adapter.a.ndim == 3
        (parameters if is_gate else modules).append(names[layer])
        place = _ROOT + (_gate_place(names[layer], names.values()) if is_gate else names[layer])
        pair = _gate_to_file(adapter) if is_gate else (adapter.a.T, adapter.b.T)
        for name, value in zip("AB", pair, strict=True):
            tensors[f"{place}.lora_{name}.weight"] = np.ascontiguousarray(value)
    ranks = {names[layer]: adapter.rank for layer, adapter in found.items()}
    alphas = {names[layer]: adapter.alpha for layer, adapter in found.items()}
    rank, rank_pattern = _most_and_rest(ranks)
    alpha, alpha_pattern = _most_and_rest(alphas)
    config = {
        "peft_type": "LORA",
        "peft_version": GATES_SINCE,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": rank_pattern,
        "alpha_pattern": alpha_pattern,
        "target_modules": modules or None,
        "target_parameters": parameters or None,
        "lora_dropout": 0.0,
        "inference_mode": True,
        **_PLAIN,
    }
    with new_folder(path, overwrite) as folder:
        write_json(folder / CONFIG, config)
        safetensors.numpy.save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def load(backbone, path):
    """See `RGemmaCausalLM.load_from_peft`."""
    folder = pathlib.Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"{str(path)!r} is no folder. Fetch the adapter first.")
    config = _checked_config(folder)
    tensors = _tensors(folder)
    layers = linear_layers(backbone)
    owners = {_tensor_of(backbone.config, path): layer for path, layer in layers.items()}
    found = {}
    for place in sorted({name.rpartition(".lora_")[0] or name for name in tensors}):
        name = place.removeprefix(_ROOT)
        if name not in owners:
            name = _gate_at(name, config.get("target_parameters") or ())
        if name not in owners:
            raise ValueError(
                f"{str(path)!r} has LoRA for {place!r}, where keras-rgemma has no linear layer "
                "of a block. Train it on those alone (not on the embedding or the head)."
            )
        try:
            a, b = (tensors.pop(f"{place}.lora_{x}.weight").astype("float32") for x in "AB")
        except KeyError as error:
            raise ValueError(f"{str(path)!r} lacks the tensor {error}.") from error
        layer = owners[name]
        rank = _chosen(config["rank_pattern"], name, config["r"])
        alpha = _chosen(config["alpha_pattern"], name, config["lora_alpha"])
        heads = layer.weight_shape[0] if isinstance(layer, BlockDiagonal) else 1
        if len(a) != rank * heads:
            raise ValueError(
                f"{place!r} in {str(path)!r} has A of the shape {a.shape}, but {CONFIG} says rank "
                f"{rank}."
            )
        scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
        if isinstance(layer, BlockDiagonal):
            found[layer.path] = _gate_from_file(a, b, scale, layer, config)
        else:
            found[layer.path] = Adapter(a.T, b.T, scale * len(a))
    if tensors:
        raise ValueError(
            f"{str(path)!r} holds tensors that are no A or B of a layer: {sorted(tensors)}."
        )
    adapters.install(backbone, found, path)


# === Gates ===


def _gate_place(name, adapted):
    """Names the module where PEFT keeps a gate: of two with LoRA, the outer wraps the inner."""
    module, _, parameter = name.rpartition(".")
    others = {x for x in adapted if x.rpartition(".")[0] == module}
    is_inner = parameter.startswith("input") and len(others) == 2
    return module + (_WRAPPED if is_inner else "")


def _gate_at(place, target_parameters):
    """Names the gate that PEFT keeps at a place; the inverse of `_gate_place`."""
    module = place.removesuffix(_WRAPPED)
    gates = [f"{module}.{gate}_gate_weight" for gate in ("input", "recurrent")]
    adapted = [
        gate
        for gate in gates
        if any(gate == name or gate.endswith(f".{name}") for name in target_parameters)
    ]
    if len(adapted) == 2:
        return adapted[0 if place.endswith(_WRAPPED) else 1]
    return adapted[0] if adapted and place == module else None


def _gate_to_file(adapter):
    """Converts A and B of a gate to `lora_A` and `lora_B`, with our B in each block."""
    heads, inputs, rank = adapter.a.shape
    a = np.tile(adapter.b, (heads, 1))
    return a, adapter.a.transpose(1, 2, 0).reshape(inputs, rank * heads)


def _gate_from_file(a, b, scale, layer, config):
    """Converts `lora_A` and `lora_B` to A and B, exactly: with H ranks if blocks differ in B."""
    heads = layer.weight_shape[0]
    rank = len(a) // heads
    a, b = a.reshape(heads, rank, -1), b.reshape(len(b), rank, heads).transpose(2, 0, 1)
    if _is_before(config.get("peft_version"), GATES_SINCE):
        a, b = b.swapaxes(1, 2), a.swapaxes(1, 2)
    # Now `b` is [H, I, rank] and `a` [H, rank, J].
    if (a == a[:1]).all():
        return Adapter(b, a[0], scale * rank)
    blocks = np.zeros((heads, b.shape[1], heads, rank), "float32")
    for head in range(heads):
        blocks[head, :, head] = b[head]
    wide = blocks.reshape(heads, b.shape[1], heads * rank)
    return Adapter(wide, a.reshape(heads * rank, -1), scale * heads * rank)


# === Files ===


def _tensor_of(config, path):
    """Names the layer at a path as PEFT does: a module, or for a gate a parameter."""
    kernel = next(weight for weight in weights(config) if weight.path == f"{path}/kernel")
    return kernel.huggingface.name.removesuffix(".weight")


def _checked_config(folder):
    config = read_json(folder / CONFIG)
    if config.get("peft_type") != "LORA":
        raise ValueError(
            f"{str(folder)!r} is an adapter of the kind {config.get('peft_type')!r}. Only LORA can "
            "be loaded."
        )
    for name, plain in _PLAIN.items():
        if config.get(name, plain) not in (plain, [], {}):
            raise ValueError(
                f"{str(folder)!r} has {name}={config[name]!r}, which the matrices of LoRA cannot "
                f"express. Only {name}={plain!r} can be loaded; merge the adapter with PEFT, and "
                "load the model that results."
            )
    if (initialisation := config.get("init_lora_weights", True)) not in _PLAIN_INITIALISATIONS:
        raise ValueError(
            f"{str(folder)!r} began with init_lora_weights={initialisation!r}, which changes the "
            "base as well. Convert it with PEFT to an adapter of the base as it was (see "
            "`path_initial_model_for_weight_conversion` there)."
        )
    for name in ("r", "lora_alpha"):
        if not isinstance(config.get(name), (int, float)) or config[name] <= 0:
            raise ValueError(
                f"{str(folder / CONFIG)!r}: {name!r} must be a positive number. Received: "
                f"{config.get(name)!r}."
            )
    patterns = {x: config.get(x) or {} for x in ("rank_pattern", "alpha_pattern")}
    return {**config, **patterns}


def _tensors(folder):
    try:
        with safetensors.safe_open(folder / WEIGHTS, "np") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(
            f"{WEIGHTS!r} in {str(folder)!r} is missing or broken: {error}. (A pickled .bin is not "
            "loaded; save the adapter with `safe_serialization=True`.)"
        ) from error
    for name, tensor in tensors.items():
        if not np.isfinite(tensor.astype("float32")).all():
            raise ValueError(f"The tensor {name!r} in {str(folder)!r} is not finite.")
    return tensors


def _most_and_rest(values):
    """Splits a dict into its most common value and a dict of the entries with others."""
    found = list(values.values())
    most = max(set(found), key=found.count)
    return most, {name: value for name, value in values.items() if value != most}


def _chosen(patterns, name, default):
    """Finds the value of the first pattern that matches a name, as PEFT matches them."""
    matching = (value for x, value in patterns.items() if re.match(rf"(.*\.)?({x})$", name))
    return next(matching, default)


def _is_before(version, other):
    def numbers(text):
        return [int(x) for x in re.findall(r"\d+", text.partition("@")[0])[:3]]

    return not version or numbers(version) < numbers(other)
