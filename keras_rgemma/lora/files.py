"""Inspects the LoRA in a file of weights before any weight is loaded."""

import contextlib
from collections.abc import Iterator
from typing import Any

from keras_rgemma.keras_internals.saving import h5_files, open_weights, saved_block
from keras_rgemma.layers.lora import FACTORS
from keras_rgemma.lora.backbone import add_lora, linear_layers, lora_layers_by_path
from keras_rgemma.types import StrPath

_BLOCK = "residual_block"  # Keras' name for the groups of these layers in a file


@contextlib.contextmanager
def keeping_lora(backbone: Any, path: StrPath, skip_mismatch: bool = False) -> Iterator[None]:
    """Restores A and B if loading weights in a `with` block raises a ValueError.

    Args:
        backbone: `RGemmaBackbone` that gets the weights, alone or in another model.
        path: str or path of the file of the weights.
        skip_mismatch: bool, whether weights of other shapes are skipped.

    Raises:
        ValueError: the file has LoRA of another rank for a layer; no weight has changed then.
    """
    layers = lora_layers_by_path(backbone)
    values = {layer: layer.lora_values() for layer in layers.values()}
    if layers and not skip_mismatch:
        with open_weights(path) as store:
            ranks = {} if store is None else _ranks(store)
        for name, layer in layers.items():
            if name in ranks:
                layer.check_stored_rank(ranks[name])
    try:
        yield
    except ValueError:
        for layer, value in values.items():
            layer.assign_lora(*value)
        raise


def prepare(backbone: Any, store: Any) -> None:
    """Enables LoRA on quantized layers with A and B in a file that has no LoRA in its config.

    The first versions described LoRA in no config. Layers that are not quantized add A B to their
    kernels when they are loaded; quantized layers would have to round the sum.

    Args:
        backbone: `RGemmaBackbone`; its layers are loaded next.
        store: the store of Keras that holds the weights.
    """
    layers = linear_layers(backbone)
    sizes = {
        path: (rank, rank)
        for path, rank in _ranks(store).items()
        if path in layers and layers[path].quantization_mode and not layers[path].lora_enabled
    }
    if sizes:
        add_lora(backbone, sizes)


def _ranks(store: Any) -> dict[str, int]:
    """Maps the paths of layers to the ranks of A and B in a store."""
    ranks = {}
    for file in h5_files(store):
        names = []
        file.visit(names.append)
        for name in names:
            if name.endswith(f"/vars/{FACTORS[1]}") and (block := saved_block(name, _BLOCK)):
                index, (*parts, _, _) = block
                ranks["/".join([f"block_{index}", *parts])] = file[name].shape[0]
    return ranks
