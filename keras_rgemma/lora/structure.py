"""Describes LoRA in the config of a backbone: the layers with LoRA and the trained weights."""

import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras

from keras_rgemma.config import check_count
from keras_rgemma.keras_internals.layers import layers_of
from keras_rgemma.lora.backbone import add_lora, linear_layers, lora_layers_by_path

_SIZES = {"rank", "alpha"}


def structure(backbone: Any) -> dict[str, Any] | None:
    """Describes the LoRA of a backbone for its config.

    Args:
        backbone: `RGemmaBackbone`.

    Returns:
        A dict of JSON types, or None if LoRA is not enabled: "layers", a dict of path to
        `{"rank": int, "alpha": float}`; and, if the trained weights are not exactly A and B,
        "trainable", a dict of two lists of paths, of layers and of weights.
    """
    layers = lora_layers_by_path(backbone)
    if not layers:
        return None
    description = {
        "layers": {
            path: {"rank": int(layer.lora_rank), "alpha": float(layer.lora_alpha)}
            for path, layer in layers.items()
        }
    }
    trained = _trainable(backbone)
    if trained != _trainable_after_enabling(layers):
        description["trainable"] = trained
    return description


def restore(
    backbone: Any,
    structure: Mapping[str, Any],
    check_size: Callable[[int], object] = lambda count: None,
    **initializers: Any,
) -> None:
    """Enables LoRA as described in a config.

    Args:
        backbone: `RGemmaBackbone` without LoRA.
        structure: dict, a result of the function `structure`.
        check_size: function of the number of elements of all A and B, called before any is made.
        **initializers: of `add_lora`.

    Raises:
        ValueError: the dict describes no LoRA, or that of another model.
    """
    sizes = _checked_sizes(backbone, structure)
    layers = linear_layers(backbone)
    check_size(sum(_element_count(layers[path], rank) for path, (rank, _) in sizes.items()))
    was_trainable = backbone.trainable
    add_lora(backbone, sizes, **initializers)
    if flags := structure.get("trainable"):
        backbone.trainable = was_trainable
        _set_trainable(backbone, flags)


def _checked_sizes(backbone: Any, structure: object) -> dict[str, tuple[int, float]]:
    """Reads the layers of a config, and returns a dict of path to a pair of rank and alpha."""
    layers = structure.get("layers") if isinstance(structure, dict) else None
    if not (layers and isinstance(layers, dict)):
        raise ValueError(
            "`lora` in the config of a backbone must have `layers`, a dict of the paths of layers "
            f"to their `rank` and `alpha`. Received: {structure!r}."
        )
    known = linear_layers(backbone)
    sizes = {}
    for path, size in layers.items():
        if path not in known:
            raise ValueError(
                f"The config has LoRA for {path!r}, which is no linear layer of this architecture. "
                "Take the config that was saved with the weights."
            )
        if not isinstance(size, dict) or set(size) != _SIZES:
            raise ValueError(
                f"The LoRA of {path!r} must have `rank` and `alpha` in the config. Received: "
                f"{size!r}. Take the config that was saved with the weights."
            )
        rank, alpha = check_count("rank", size["rank"]), size["alpha"]
        if not (isinstance(alpha, numbers.Real) and 0 < alpha < float("inf")):
            raise ValueError(f"`alpha` of {path!r} must be a positive number. Received: {alpha!r}.")
        sizes[path] = rank, alpha
    return sizes


def _element_count(layer: Any, rank: int) -> int:
    """Counts the elements of A and B of a layer."""
    *inputs, output = layer.weight_shape
    return rank * (math.prod(inputs) + output)


def _layers(backbone: Any) -> dict[str, keras.Layer]:
    """Maps the paths of the layers inside of a backbone to the layers."""
    return {x.path: x for x in layers_of(backbone, include_self=False) if x.path}


def _trainable(backbone: Any) -> dict[str, list[str]]:
    """Lists the paths of trainable layers and weights, a dict of two lists."""
    return {
        "layers": sorted(path for path, layer in _layers(backbone).items() if layer.trainable),
        "weights": sorted(weight.path for weight in backbone.weights if weight.trainable),
    }


def _trainable_after_enabling(layers: Mapping[str, Any]) -> dict[str, list[str]]:
    """Returns the result of `_trainable` for a backbone right after LoRA is enabled."""
    factors = [x for layer in layers.values() for x in (layer.lora_kernel_a, layer.lora_kernel_b)]
    return {"layers": sorted(layers), "weights": sorted(factor.path for factor in factors)}


def _set_trainable(backbone: Any, trainable: Mapping[str, Iterable[str]]) -> None:
    """Applies a result of `_trainable` to a backbone."""
    layers, weights = (set(trainable[name]) for name in ("layers", "weights"))
    # From the outside to the inside: a layer sets the flags of all layers in it.
    inner = _layers(backbone)
    for path in sorted(inner, key=lambda path: path.count("/")):
        inner[path].trainable = path in layers
    for weight in backbone.weights:
        weight.trainable = weight.path in weights
