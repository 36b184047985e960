"""Makes the layout map of a model from the dimension letters of its weights."""

from __future__ import annotations

from collections.abc import Mapping

import keras

from keras_rgemma.sharding.activations import ACTIVATIONS, MODEL, RESIDUAL
from keras_rgemma.sharding.checks import check_mesh
from keras_rgemma.sharding.entries import GATES, PREFIX

# Dimensions of weights that are divided along the model axis: the vocabulary V, the channels L of
# the recurrence, the inner width M of the MLP, and the features HK of all query heads.
_OVER_MODEL = ("V", "L", "M", "HK")
# Dimensions of matrices that are divided along another axis where weights are fully sharded: the
# width D, and the inputs I of a block of the gates.
_OVER_DATA = ("D", "I")


def layout_map(
    weights: Mapping[str, tuple[str, ...]],
    device_mesh: keras.distribution.DeviceMesh,
    model_axis: str,
    data_axis: str,
    fully_sharded: bool = False,
    sequence_axis: str | None = None,
) -> keras.distribution.LayoutMap:
    """Makes the layout map of a model; see `RGemmaBackbone.get_layout_map`.

    Args:
        weights: dict of a pattern of a weight's path to its dimensions, a tuple of str.
        device_mesh: `keras.distribution.DeviceMesh`.
        model_axis, data_axis: str, axes of the mesh.
        fully_sharded: bool.
        sequence_axis: str, an axis of the mesh, or None.

    Returns:
        `keras.distribution.LayoutMap`. The gates of the recurrence have no entry for their weights:
        whether the mesh divides their blocks shows when a model is made (`weights.place`).
    """
    check_mesh(device_mesh, model_axis, data_axis, sequence_axis)
    is_own = sequence_axis not in (None, model_axis)
    # Of an axis for time each device needs all weights for its tokens, as of one for rows.
    weights_axis = sequence_axis if is_own else data_axis
    layouts = keras.distribution.LayoutMap(device_mesh)

    def put(path: str, dimensions: tuple[str, ...]) -> None:
        is_matrix = len(dimensions) > 1
        axes = tuple(
            model_axis
            if name in _OVER_MODEL
            else weights_axis
            if fully_sharded and is_matrix and name in _OVER_DATA
            else None
            for name in dimensions
        )
        if any(axes):
            layouts[path] = axes

    for path, dimensions in weights.items():
        layer, _, name = path.rpartition("/")
        if dimensions[0] == "H":
            continue
        put(path, dimensions)
        if name == "kernel" and len(dimensions) == 2 and dimensions[0] != "R":
            put(f"{layer}/lora_kernel_a", (dimensions[0], "rank"))
            put(f"{layer}/lora_kernel_b", ("rank", dimensions[1]))
        if name == "embeddings":  # a scale for each token, or for each group of a token's numbers
            put(f"{layer}/embeddings_(scale|zero)", dimensions[:1])
    for letters in ACTIVATIONS:
        axes = {"B": data_axis, **dict.fromkeys(MODEL, model_axis)}
        if is_own:
            axes |= {"T": sequence_axis, "P": sequence_axis}
        elif letters == RESIDUAL:
            axes["T"] = sequence_axis
        layouts[PREFIX + letters] = tuple(axes.get(letter) for letter in letters)
    inputs_axis = weights_axis if fully_sharded else None
    layouts[PREFIX + GATES] = (model_axis, inputs_axis, None)
    return layouts
