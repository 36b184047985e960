"""LoRA in files of weights, looked at before any weight is loaded."""

import contextlib

from keras_rgemma.keras_internals.saving import h5_files, open_weights, saved_block
from keras_rgemma.layers.lora import FACTORS
from keras_rgemma.lora.backbone import add_lora, linear_layers, lora_layers_by_path

_BLOCK = "residual_block"  # what Keras calls the groups of these layers in a file


@contextlib.contextmanager
def keeping_lora(backbone, path, skip_mismatch=False):
    """Keeps A and B as they were if the weights that are loaded in a `with` block are refused.

    Args:
        backbone: `RGemmaBackbone` that the weights are loaded into, alone or in another model.
        path: str or path of their file.
        skip_mismatch: bool, whether weights of other shapes are passed over.

    Raises:
        ValueError: the file has LoRA of another rank for a layer; no weight has changed then.
    """
    before = lora_layers_by_path(backbone)
    values = {layer: layer.lora_values() for layer in before.values()}
    if before and not skip_mismatch:
        with open_weights(path) as store:
            ranks = {} if store is None else _ranks(store)
        for name, layer in before.items():
            if name in ranks:
                layer.check_stored_rank(ranks[name])
    try:
        yield
    except ValueError:
        for layer, value in values.items():
            layer.assign_lora(*value)
        raise


def prepare(backbone, store):
    """Enables LoRA on quantized layers for which a file has A and B, though no config said so.

    The first versions kept LoRA in files alone. Layers that are not quantized add A B to their
    kernels as they are loaded; these would have to round the sum.

    Args:
        backbone: `RGemmaBackbone` whose layers are loaded next.
        store: the store of Keras that they are loaded from.
    """
    layers = linear_layers(backbone)
    waiting = {
        path: (rank, rank)
        for path, rank in _ranks(store).items()
        if path in layers and layers[path].quantization_mode and not layers[path].lora_enabled
    }
    if waiting:
        add_lora(backbone, waiting)


def _ranks(store):
    """Maps the paths of layers to the ranks of their A and B in a store."""
    ranks = {}

    for file in h5_files(store):
        names = []
        file.visit(names.append)
        for name in names:
            if name.endswith(f"/vars/{FACTORS[1]}") and (found := saved_block(name, _BLOCK)):
                index, (*parts, _, _) = found
                ranks["/".join([f"block_{index}", *parts])] = file[name].shape[0]
    return ranks
