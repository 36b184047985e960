"""Keeps activations and states where the weights are: each array of a step by its letters."""

from __future__ import annotations

from collections.abc import Callable

import keras
from keras import ops

from keras_rgemma.sharding.entries import axis_size, layout_in_force, sequence_axis, time_axis
from keras_rgemma.types import Shape, Tensor

# The arrays of a step, named by their letters (`shapes.py`; here G: key/value heads, Q: the
# features of all query heads, R: taps of the convolution, P: parts of time, each of another device,
# and I: the width D of what enters a linear map). A letter of `MODEL` is divided along the model
# axis of the mesh, B along its data axis, and T and P along its sequence axis if it has one. Where
# that is the model axis, T of the `RESIDUAL` stream alone is divided. Every other letter is whole
# on each device.
ACTIVATIONS = (
    "B",
    "BD",
    "BL",
    "BPC",
    "BPCD",
    "BRL",
    "BT",
    "BTD",
    "BTGK",
    "BTHK",
    "BTI",
    "BTL",
    "BTM",
    "BTQ",
    "BTV",
    "BV",
    "BWGK",
    "HBTK",
)
MODEL = ("H", "L", "M", "Q", "V")
RESIDUAL = "BTD"


def layout_of(letters: str, shape: Shape) -> keras.distribution.TensorLayout | None:
    """Returns the layout of an array under the `keras.distribution` in force.

    An axis of the mesh that does not divide its dimension is left out: each of its devices then
    holds all of that dimension.

    Args:
        letters: str of `ACTIVATIONS`.
        shape: tuple of ints, or None for sizes that are not known yet.

    Returns:
        `keras.distribution.TensorLayout`, or None for an array that nobody lays out: there is no
        distribution, or its layout map is not from `RGemmaBackbone.get_layout_map`.
    """
    distribution = keras.distribution.distribution()
    if distribution is None:
        return None
    if isinstance(distribution, keras.distribution.DataParallel):
        axes = [distribution.batch_dim_name if letter == "B" else None for letter in letters]
    else:
        entry = layout_in_force(letters)
        if entry is None:
            return None
        axes = entry.axes
    return keras.distribution.TensorLayout(
        [
            axis if axis is not None and _is_divided(size, axis) else None
            for axis, size in zip(axes, shape, strict=True)
        ],
        distribution.device_mesh,
    )


def _is_divided(size: object, axis: str) -> bool:
    return (
        isinstance(size, int) and size % axis_size(axis) == 0
    )  # not None or a symbol of an export


def gathered(
    x: Tensor, layout: keras.distribution.TensorLayout, of_gradient: keras.distribution.TensorLayout
) -> Tensor:
    """Lays an array out for a product, and its gradient as the array was.

    The gradient is then summed over devices and divided at once. JAX alone would give it the
    layout of the gathered array, whole on each device.

    Args:
        x: array.
        layout, of_gradient: `keras.distribution.TensorLayout`.
    """

    @ops.custom_gradient
    def gather(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        def gradient(upstream: Tensor) -> Tensor:
            return keras.distribution.distribute_tensor(upstream, of_gradient)

        return keras.distribution.distribute_tensor(x, layout), gradient

    return gather(x)


if keras.config.backend() == "jax":

    def constrain(x: Tensor, letters: str, parts: int | None = None) -> Tensor:
        """Lays an array out over the devices of the `keras.distribution` in force.

        Inside of a program that is a constraint, which its compiler keeps with collectives where it
        has to; the gradient of the array has the same layout. Outside of a program the array moves.

        Args:
            x: array, or a `keras.KerasTensor`, which stays as it is.
            letters: str of `ACTIVATIONS`, a letter for each axis of x.
            parts: int, into how many parts the last axis will be split, such as heads: it is whole
                on each device unless the mesh divides them. None for an axis that stays.
        """
        if keras.distribution.distribution() is None or not ops.is_tensor(x):
            return x
        shape = tuple(x.shape) if parts is None else (*x.shape[:-1], parts)
        layout = layout_of(letters, shape)
        return x if layout is None else keras.distribution.distribute_tensor(x, layout)

    def inputs_of_maps(x: Tensor) -> Tensor:
        """Lays [B, T, D] out for linear maps whose weights devices share.

        Where the residual stream is divided over time along the model axis, each device gets the
        tokens of all others, once for all maps.
        """
        is_gathered = ops.is_tensor(x) and x.ndim == 3 and sequence_axis() != time_axis(x.shape[1])
        if not is_gathered:
            return x
        return gathered(x, *(layout_of(letters, tuple(x.shape)) for letters in ("BTI", "BTD")))

    def inputs_of_low_rank(x: Tensor, path: str) -> Tensor:
        """Lays the inputs of a linear map with LoRA out for the product with its A.

        The gradient of A needs them. Where each device has the tokens of all others for the map,
        their own are kept for it, and not all.

        Args:
            x: float [B, T, D], or inputs of another form, which stay.
            path: str, of the variable A.
        """
        is_gathered = ops.is_tensor(x) and x.ndim == 3 and sequence_axis() != time_axis(x.shape[1])
        layout = keras.distribution.distribution().get_tensor_layout(path) if is_gathered else None
        is_divided = layout is not None and sequence_axis() in layout.axes
        return constrain(x, "BTD") if is_gathered and not is_divided else x

else:

    def constrain(x: Tensor, letters: str, parts: int | None = None) -> Tensor:
        """Returns x as it is: `keras.distribution` is JAX's."""
        return x

    def inputs_of_maps(x: Tensor) -> Tensor:
        """Returns x as it is."""
        return x

    def inputs_of_low_rank(x: Tensor, path: str) -> Tensor:
        """Returns x as it is."""
        return x
