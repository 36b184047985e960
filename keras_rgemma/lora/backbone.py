"""Enables, merges and removes LoRA on the layers of a backbone."""

import numbers
import re
from collections.abc import Iterable, Mapping
from typing import Any

from keras_rgemma.config import check_count
from keras_rgemma.keras_internals.layers import layers_of
from keras_rgemma.keras_internals.parameters import normal_tensors
from keras_rgemma.layers.lora import CALIBRATED, LoRA, lora_layers

# Modes that Keras cannot train LoRA on.
_WITHOUT = (*CALIBRATED, "float8")


def enable(
    backbone: Any,
    rank: int,
    target_layer_names: str | Iterable[str] | None = None,
    alpha: float | None = None,
) -> None:
    """See `RGemmaBackbone.enable_lora`."""
    rank = check_count("rank", rank)
    alpha = rank if alpha is None else alpha
    if not (isinstance(alpha, numbers.Real) and 0 < alpha < float("inf")):
        raise ValueError(f"`alpha` must be a positive number. Received: {alpha!r}.")
    if lora_layers_by_path(backbone):
        raise ValueError(
            "LoRA is enabled already. Call `merge_lora()` to keep what it has learned, or "
            "`disable_lora()` to drop it, before you enable it anew."
        )
    add_lora(backbone, dict.fromkeys(_targets(backbone, target_layer_names), (rank, alpha)))


def add_lora(backbone: Any, sizes: Mapping[str, tuple[int, float]], **initializers: Any) -> None:
    """Enables LoRA on layers, and freezes all other weights unless LoRA is enabled already.

    Args:
        backbone: `RGemmaBackbone`.
        sizes: dict of the path of a layer without LoRA to a pair of rank and alpha.
        **initializers: `a_initializer` and `b_initializer` of `keras.layers.Dense.enable_lora`.

    Raises:
        ValueError: a layer is quantized in a mode that Keras cannot train LoRA on.
    """
    layers = linear_layers(backbone)
    for path in sizes:
        if (mode := layers[path].quantization_mode) in _WITHOUT:
            raise ValueError(
                f"{path!r} is quantized to {mode}, which Keras cannot train LoRA on. Enable LoRA "
                "on the model as it was, or quantize that to int8 or int4."
            )
    if not lora_layers(backbone):  # with LoRA it is frozen already
        backbone.trainable = True
        _set_trainable(backbone, False)
    with normal_tensors(), backbone.distribution_scope():
        for path, (rank, alpha) in sizes.items():
            layers[path].enable_lora(rank, alpha, **initializers)


def disable(backbone: Any) -> None:
    """See `RGemmaBackbone.disable_lora`."""
    for layer in checked_layers(backbone).values():
        layer.disable_lora()
    _set_trainable(backbone, True)


def merge(backbone: Any) -> None:
    """See `RGemmaBackbone.merge_lora`."""
    for layer in checked_layers(backbone).values():
        layer.merge_lora()
    _set_trainable(backbone, True)


def linear_layers(backbone: Any) -> dict[str, Any]:
    """Maps the paths of all linear layers, which can have LoRA, to the layers."""
    return {x.path: x for x in layers_of(backbone) if isinstance(x, LoRA)}


def lora_layers_by_path(backbone: Any) -> dict[str, Any]:
    """Maps the paths of the layers with LoRA to the layers."""
    return {layer.path: layer for layer in lora_layers(backbone)}


def checked_layers(backbone: Any) -> dict[str, Any]:
    """Maps the paths of the layers with LoRA to the layers, and checks that there are some.

    Raises:
        ValueError: no layer has LoRA, or a layer that is no linear layer of a block has LoRA.
    """
    layers = lora_layers_by_path(backbone)
    if not layers:
        raise ValueError("LoRA is not enabled on this model. Call `enable_lora(rank)` first.")
    for layer in layers_of(backbone):
        if getattr(layer, "lora_enabled", False) and layer.path not in layers:
            raise ValueError(
                f"LoRA is enabled on {layer.path!r}, which is no linear layer of a block. Save it "
                "with the whole model: `save_to_preset` merges it."
            )
    return layers


def _set_trainable(backbone: Any, value: bool) -> None:
    for layer in layers_of(backbone, include_self=False):
        layer.trainable = value


def _targets(backbone: Any, patterns: str | Iterable[str] | None) -> list[str]:
    """Lists the paths of the layers that a pattern matches, by the whole name or path."""
    layers = linear_layers(backbone)
    if patterns is None:
        return list(layers)
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    chosen = set()
    for pattern in patterns:
        try:
            expression = re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ValueError(
                "`target_layer_names` holds names, paths or regular expressions. Received: "
                f"{pattern!r} ({error})."
            ) from error
        matching = {
            path
            for path, layer in layers.items()
            if expression.fullmatch(layer.name) or expression.fullmatch(path)
        }
        if not matching:
            raise ValueError(
                f"`target_layer_names`: {pattern!r} matches no linear layer of a block. They are "
                f"called {backbone.default_lora_layer_names()}, and a path is such as "
                f"{next(iter(layers))!r}."
            )
        chosen |= matching
    if not chosen:
        raise ValueError("`target_layer_names` is empty. Name a layer, or pass None for all.")
    return [path for path in layers if path in chosen]
