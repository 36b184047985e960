"""Arranges the tensors of a checkpoint as DeepMind's tree, without this package's table of names.

The table in `checkpoints/names.py` loads this package's model. If the reference were loaded through
it, too, a name that is wrong there would be wrong in both models, and nobody would see it. So the
rules here are those of DeepMind's and Google's own conversions: `recurrentgemma.conversion` between
Flax and PyTorch, and for Hugging Face the script by which Google converted the published weights.
"""

import re
from collections.abc import Callable, Iterator

import numpy as np

from keras_rgemma.checkpoints.source import TensorSource

_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_LINEAR = {"weight": "kernel", "bias": "bias"}
_IN_LAYER = {
    "temporal_pre_norm.weight": "temporal_pre_norm/scale",
    "channel_pre_norm.weight": "channel_pre_norm/scale",
    "temporal_block.conv_1d.weight": "recurrent_block/conv_1d/w",
    "temporal_block.conv_1d.bias": "recurrent_block/conv_1d/b",
    "temporal_block.rg_lru.recurrent_param": "recurrent_block/rg_lru/a_param",
    "temporal_block.rg_lru.input_gate_weight": "recurrent_block/rg_lru/input_gate/w",
    "temporal_block.rg_lru.input_gate_bias": "recurrent_block/rg_lru/input_gate/b",
    "temporal_block.rg_lru.recurrent_gate_weight": "recurrent_block/rg_lru/a_gate/w",
    "temporal_block.rg_lru.recurrent_gate_bias": "recurrent_block/rg_lru/a_gate/b",
    **{
        f"{theirs}.{ending}": f"{name}/{flax}"
        for theirs, name in {
            "mlp_block.down_proj": "mlp_block/ffw_down",
            "temporal_block.linear_x": "recurrent_block/linear_x",
            "temporal_block.linear_y": "recurrent_block/linear_y",
            "temporal_block.linear_out": "recurrent_block/linear_out",
            "temporal_block.q_proj": "attention_block/proj_q",
            "temporal_block.k_proj": "attention_block/proj_k",
            "temporal_block.v_proj": "attention_block/proj_v",
            "temporal_block.o_proj": "attention_block/proj_final",
        }.items()
        for ending, flax in _LINEAR.items()
    },
}
_TOP = {
    "model.embed_tokens.weight": "embedder/input_embedding",
    "model.final_norm.weight": "final_norm/scale",
}
# The two halves of DeepMind's `ffw_up`: the gate comes first (`modules.MLPBlock`).
_BRANCHES = {"mlp_block.gate_proj": 0, "mlp_block.up_proj": 1}


def deepmind_arrays(source: TensorSource, convert: Callable) -> dict[str, object]:
    """Reads a checkpoint, one tensor at a time, as the leaves of DeepMind's tree.

    Args:
        source: `TensorSource` in any format.
        convert: function of a NumPy array, applied to each leaf, such as one that puts the leaf on
            a device in another dtype.

    Returns:
        dict of a path with slashes to what `convert` returned.

    Raises:
        ValueError: a name is none of those of the format.
    """
    read = {"flax": _flax, "torch": _torch, "huggingface": _huggingface}[source.format]
    return {path: convert(array) for path, array in read(source)}


def _flax(source: TensorSource) -> Iterator[tuple[str, np.ndarray]]:
    for name in source.shapes:
        yield name, source.read(name)


def _torch(source: TensorSource) -> Iterator[tuple[str, np.ndarray]]:
    """As `recurrentgemma.conversion`: linear layers have a transposed `weight` for a `kernel`."""
    for name in source.shapes:
        array = source.read(name)
        if name.endswith(".weight"):
            name, array = name.removesuffix("weight") + "kernel", array.T
        yield re.sub(r"blocks/(\d+)", r"blocks.\1", name.replace(".", "/")), array


def _huggingface(source: TensorSource) -> Iterator[tuple[str, np.ndarray]]:
    branches: dict[tuple[str, str], dict[int, str]] = {}
    for name in source.shapes:
        if name in source.copies:  # the embedding once more, as the output
            continue
        match = _LAYER.fullmatch(name)
        root, rest = ("", name) if match is None else (f"blocks.{match[1]}/", match[2])
        layer, _, ending = rest.rpartition(".")
        if match and layer in _BRANCHES:
            branches.setdefault((root, ending), {})[_BRANCHES[layer]] = name
            continue
        path = (_TOP if match is None else _IN_LAYER).get(rest)
        if path is None:
            raise ValueError(
                f"The tensor {name!r} is none of transformers' RecurrentGemma. Check that config "
                "and weights belong together."
            )
        array = source.read(name)
        if path.endswith("conv_1d/w"):
            array = array[:, 0].T  # [L, 1, taps]
        elif path.endswith("/kernel"):
            array = array.T
        yield root + path, array
    for (root, ending), names in branches.items():
        parts = [source.read(names[part]) for part in (0, 1)]
        is_matrix = ending == "weight"
        stacked = np.stack([x.T if is_matrix else x[None, None] for x in parts])
        yield f"{root}mlp_block/ffw_up/{'w' if is_matrix else 'b'}", stacked
