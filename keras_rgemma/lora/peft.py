"""Writes and reads adapters of Hugging Face PEFT, for models of `export_to_transformers`.

A linear layer there is a `torch.nn.Linear`: `lora_A` [rank, in] and `lora_B` [out, rank] are ours
transposed. The gates of the recurrence are parameters [H, I, J], which PEFT reaches by
`target_parameters`: PEFT adds `einsum("ire,erj->eij", lora_B, lora_A)` of `lora_B` [I, rank * H]
and `lora_A` [H * rank, J]. (Before version 0.19.1 the last two axes were the other way round.)
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import safetensors.numpy

from keras_rgemma.checkpoints.adapter import CONFIG, WEIGHTS, check_is_adapter, read_tensors
from keras_rgemma.checkpoints.names import weights
from keras_rgemma.config import RGemmaConfig
from keras_rgemma.files import new_folder, read_json, write_json
from keras_rgemma.layers.block_diagonal import BlockDiagonal
from keras_rgemma.lora import adapters
from keras_rgemma.lora.adapters import Adapter
from keras_rgemma.lora.backbone import linear_layers
from keras_rgemma.types import StrPath

GATES_SINCE = "0.19.1"  # the first version of PEFT that reads gates in this layout
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


def export(backbone: Any, path: StrPath, base_model: str | None, overwrite: bool) -> None:
    """See `RGemmaCausalLM.export_to_peft`."""
    by_path = adapters.adapters_by_path(backbone)
    names = {layer: _peft_name(backbone.config, layer) for layer in by_path}
    tensors, modules, parameters = {}, [], []
    for layer, adapter in by_path.items():
        is_gate = adapter.a.ndim == 3
        (parameters if is_gate else modules).append(names[layer])
        module = _ROOT + (_gate_module(names[layer], names.values()) if is_gate else names[layer])
        pair = _gate_to_file(adapter) if is_gate else (adapter.a.T, adapter.b.T)
        for name, value in zip("AB", pair, strict=True):
            tensors[f"{module}.lora_{name}.weight"] = np.ascontiguousarray(value)
    ranks = {names[layer]: adapter.rank for layer, adapter in by_path.items()}
    alphas = {names[layer]: adapter.alpha for layer, adapter in by_path.items()}
    rank, rank_pattern = _split_most_common(ranks)
    alpha, alpha_pattern = _split_most_common(alphas)
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


def load(backbone: Any, path: StrPath) -> None:
    """See `RGemmaCausalLM.load_from_peft`."""
    folder = pathlib.Path(path)
    check_is_adapter(folder)
    config = _read_config(folder)
    tensors = read_tensors(folder)
    layers = linear_layers(backbone)
    owners = {_peft_name(backbone.config, path): layer for path, layer in layers.items()}
    loaded = {}
    for module in sorted({name.rpartition(".lora_")[0] or name for name in tensors}):
        name = module.removeprefix(_ROOT)
        if name not in owners:
            name = _gate_in(name, config.get("target_parameters") or ())
        if name not in owners:
            raise ValueError(
                f"{str(path)!r} has LoRA for {module!r}, where keras-rgemma has no linear layer "
                "of a block. Train it on those alone (not on the embedding or the head)."
            )
        try:
            a, b = (tensors.pop(f"{module}.lora_{x}.weight").astype("float32") for x in "AB")
        except KeyError as error:
            raise ValueError(
                f"{str(path)!r} lacks the tensor {error}. Fetch or save the adapter again."
            ) from error
        layer = owners[name]
        rank = _matching_value(config["rank_pattern"], name, config["r"])
        alpha = _matching_value(config["alpha_pattern"], name, config["lora_alpha"])
        heads = layer.weight_shape[0] if isinstance(layer, BlockDiagonal) else 1
        if len(a) != rank * heads:
            raise ValueError(
                f"{module!r} in {str(path)!r} has A of the shape {a.shape}, but {CONFIG} says rank "
                f"{rank}. Take the {CONFIG} that was saved with it."
            )
        scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
        if isinstance(layer, BlockDiagonal):
            loaded[layer.path] = _gate_from_file(a, b, scale, layer, config)
        else:
            loaded[layer.path] = Adapter(a.T, b.T, scale * len(a))
    if tensors:
        raise ValueError(
            f"{str(path)!r} holds tensors that are no A or B of a layer: {sorted(tensors)}. Train "
            "the adapter without `modules_to_save`, or merge it with PEFT and load the whole model."
        )
    adapters.install(backbone, loaded, path)


# === Gates ===


def _gate_module(name: str, names: Iterable[str]) -> str:
    """Names the module that holds a gate's LoRA in PEFT: of two gates, the outer wraps the inner.

    Args:
        name: str, the parameter of the gate.
        names: iterable of str, all modules and parameters with LoRA.
    """
    module, _, parameter = name.rpartition(".")
    gates = {x for x in names if x.rpartition(".")[0] == module}
    is_inner = parameter.startswith("input") and len(gates) == 2
    return module + (_WRAPPED if is_inner else "")


def _gate_in(module: str, target_parameters: Iterable[str]) -> str | None:
    """Names the gate with its LoRA in a module of PEFT: the inverse of `_gate_module`."""
    owner = module.removesuffix(_WRAPPED)
    gates = [f"{owner}.{gate}_gate_weight" for gate in ("input", "recurrent")]
    adapted = [
        gate
        for gate in gates
        if any(gate == name or gate.endswith(f".{name}") for name in target_parameters)
    ]
    if len(adapted) == 2:
        return adapted[0 if module.endswith(_WRAPPED) else 1]
    return adapted[0] if adapted and module == owner else None


def _gate_to_file(adapter: Adapter) -> tuple[np.ndarray, np.ndarray]:
    """Converts A and B of a gate to `lora_A` and `lora_B`, with the shared B in each block."""
    heads, inputs, rank = adapter.a.shape
    a = np.tile(adapter.b, (heads, 1))
    return a, adapter.a.transpose(1, 2, 0).reshape(inputs, rank * heads)


def _gate_from_file(
    a: np.ndarray, b: np.ndarray, scale: float, layer: BlockDiagonal, config: Mapping[str, Any]
) -> Adapter:
    """Converts `lora_A` and `lora_B` of a gate to A and B, with rank * H if blocks differ in B."""
    heads = layer.weight_shape[0]
    rank = len(a) // heads
    a, b = a.reshape(heads, rank, -1), b.reshape(len(b), rank, heads).transpose(2, 0, 1)
    if _is_older(config.get("peft_version"), GATES_SINCE):
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


def _peft_name(config: RGemmaConfig, path: str) -> str:
    """Returns PEFT's name of the layer with a path: a module, or for a gate a parameter."""
    kernel = next(weight for weight in weights(config) if weight.path == f"{path}/kernel")
    return kernel.huggingface.name.removesuffix(".weight")


def _read_config(folder: pathlib.Path) -> dict[str, Any]:
    """Reads the config of an adapter and checks that A and B define the adapter."""
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
    for name, values in patterns.items():
        for pattern in values:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"{str(folder / CONFIG)!r}: {name!r} holds {pattern!r}, which is no regular "
                    f"expression: {error}."
                ) from error
    return {**config, **patterns}


def _split_most_common(values: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Splits a dict into its most common value and a dict of the entries with other values."""
    counted = list(values.values())
    most_common = max(set(counted), key=counted.count)
    return most_common, {name: value for name, value in values.items() if value != most_common}


def _matching_value(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
    """Returns the value of the first pattern that matches a name in PEFT's way."""
    matching = (value for x, value in patterns.items() if re.match(rf"(.*\.)?({x})$", name))
    return next(matching, default)


def _is_older(version: str | None, other: str) -> bool:
    """Returns whether a version is missing or before another."""

    def numbers(text: str) -> list[int]:
        return [int(x) for x in re.findall(r"\d+", text.partition("@")[0])[:3]]

    return not version or numbers(version) < numbers(other)
