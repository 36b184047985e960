"""Reads the architecture of DeepMind's checkpoints from the shapes of their weights."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from keras_rgemma.config import ATTENTION, RECURRENT, RGemmaConfig
from keras_rgemma.types import StrPath

# The config that this package writes beside weights, for the settings that shapes do not tell.
CONFIG = "keras_rgemma.json"


def only(folder: StrPath, paths: Iterable[pathlib.Path]) -> pathlib.Path | None:
    """Returns the one checkpoint of a folder, or None if there is none.

    Args:
        folder: path of the folder, named in the error.
        paths: iterable of the paths of the checkpoints in the folder.

    Raises:
        ValueError: there are several.
    """
    paths = sorted(paths)
    if len(paths) > 1:
        raise ValueError(
            f"{str(folder)!r} holds several checkpoints: {[path.name for path in paths]}. Pass the "
            "path of one of them."
        )
    return paths[0] if paths else None


def check_sizes(
    path: StrPath, source: Any, most: int, counts: Callable[[str], bool] = lambda name: True
) -> None:
    """Raises ValueError if the tensors of a source take more bytes than its files can hold.

    Args:
        path: path of the files, named in the error.
        source: object with the `shapes` and `dtypes` of a `TensorSource`.
        most: int, the largest number of bytes that files of this size can hold.
        counts: function of the name of a tensor; False for one that takes no bytes of its own.
    """
    sizes = {
        name: math.prod(shape) * source.dtypes[name].itemsize
        for name, shape in source.shapes.items()
        if counts(name)
    }
    if (size := sum(sizes.values())) > most:
        largest = max(sizes, key=sizes.get)
        raise ValueError(
            f"{str(path)!r} is too small for its tensors, which take {size:,} bytes (the largest "
            f"is {largest!r}, of shape {source.shapes[largest]}): broken or hostile. Fetch it "
            "again."
        )


def config_from(shapes: Mapping[str, tuple[int, ...]]) -> RGemmaConfig:
    """Reads an architecture from the shapes of weights.

    Shapes do not tell the window, the cap of the logits and whether embeddings are scaled: these
    settings are taken to be RecurrentGemma's, 2048 tokens, 30 and yes. Without a recurrent layer
    shapes do not tell the number of key/value heads either, which is taken to be 1.

    Args:
        shapes: dict of a tensor's name, with slashes or dots, to its shape.

    Returns:
        `RGemmaConfig`.

    Raises:
        ValueError: a tensor that the architecture is read from is missing.
    """
    # The kernel of one format is the transposed weight of the other.
    shapes = {
        name.replace("/", ".").replace(".kernel", ".weight"): shape
        for name, shape in shapes.items()
    }

    def shape_of(name: str, rank: int) -> tuple[int, ...]:
        shape = shapes.get(name, ())
        if len(shape) != rank or 0 in shape:
            raise ValueError(
                f"The architecture is read from the shape of {name!r}, which must have {rank} "
                f"axes. Found: {shape or 'no such tensor'}. Check that this is a checkpoint of "
                "RecurrentGemma, and a complete one."
            )
        return shape

    vocabulary_size, hidden_dim = shape_of("embedder.input_embedding", 2)
    layer_types = []
    while f"blocks.{len(layer_types)}.channel_pre_norm.scale" in shapes:
        root = f"blocks.{len(layer_types)}"
        is_attention = f"{root}.attention_block.proj_q.weight" in shapes
        layer_types.append(ATTENTION if is_attention else RECURRENT)
    sizes = {"intermediate_dim": shape_of("blocks.0.mlp_block.ffw_up.w", 3)[2]}
    heads = None
    if RECURRENT in layer_types:
        root = f"blocks.{layer_types.index(RECURRENT)}.recurrent_block"
        heads, gate_width, _ = shape_of(f"{root}.rg_lru.a_gate.w", 3)
        sizes["lru_dim"] = heads * gate_width
        sizes["conv_width"], _ = shape_of(f"{root}.conv_1d.w", 2)
    if ATTENTION in layer_types:
        root = f"blocks.{layer_types.index(ATTENTION)}.attention_block"
        queries, keys = (
            math.prod(shape_of(f"{root}.proj_{x}.weight", 2)) // hidden_dim for x in "qk"
        )
        heads = heads or max(1, queries // keys)
        sizes["head_dim"] = queries // heads
        sizes["num_key_value_heads"] = keys // sizes["head_dim"]
    return RGemmaConfig(
        vocabulary_size=vocabulary_size,
        num_layers=len(layer_types),
        hidden_dim=hidden_dim,
        num_query_heads=heads,
        block_types=_pattern(layer_types),
        **sizes,
    )


def _pattern(layer_types: list[str]) -> list[str]:
    """Returns the shortest sequence that gives these types when it is cycled."""
    for size in range(1, len(layer_types)):
        if all(x == layer_types[i % size] for i, x in enumerate(layer_types)):
            return layer_types[:size]
    return layer_types
