"""Places the weights whose layout follows from their shape, once they are made."""

from collections.abc import Sequence

import keras
from keras import ops

from keras_rgemma.keras_internals.variables import set_layout
from keras_rgemma.sharding.activations import gathered
from keras_rgemma.sharding.checks import check_shape
from keras_rgemma.sharding.entries import GATES, axis_size, layout_in_force
from keras_rgemma.types import Tensor


def check_weight(path: str, shape: Sequence[int]) -> None:
    """Raises a ValueError if the mesh in force does not divide a weight that is to be made."""
    distribution = keras.distribution.distribution()
    if distribution is not None:
        check_shape(path, shape, distribution.get_tensor_layout(path))


def is_fully_sharded() -> bool:
    """Returns whether the layout map in force divides weights along two axes."""
    return _weights_axis() is not None


def _weights_axis() -> str | None:
    """Returns the axis beside the model axis along which weights are divided, a str or None."""
    layout = layout_in_force(GATES)
    return None if layout is None else layout.axes[1]


def in_step(variable: keras.Variable) -> Tensor:
    """Returns the value of a fully sharded weight as a step needs it: whole along the other axis.

    Each device gathers its part of the model axis, just before a product, and again in a pass that
    recomputes the product.
    """
    distribution = keras.distribution.distribution()
    layout, weights_axis = distribution.get_variable_layout(variable), _weights_axis()
    value = ops.convert_to_tensor(variable)
    if weights_axis not in layout.axes:
        return value
    axes = [None if axis == weights_axis else axis for axis in layout.axes]
    whole = keras.distribution.TensorLayout(axes, distribution.device_mesh)
    if not keras.backend.is_float_dtype(variable.dtype):
        return keras.distribution.distribute_tensor(value, whole)
    return gathered(value, whole, layout)


def place_gate(variable: keras.Variable, num_blocks: int) -> None:
    """Lays a weight of a block-diagonal layer out by its blocks, if the mesh divides them.

    Args:
        variable: `keras.Variable`, of which Keras has made a copy on each device. Its numbers lie
            block by block, also in an int4 kernel, which has another shape.
        num_blocks: int, H.
    """
    layout = layout_in_force(GATES)
    if layout is None or len(variable.shape) < 2:
        return
    blocks_axis, inputs_axis, _ = layout.axes
    shape = tuple(variable.shape)
    count = axis_size(blocks_axis)
    is_divided = num_blocks % count == 0 and shape[0] % count == 0
    axes = [blocks_axis if is_divided else None, *[None] * (len(shape) - 1)]
    if inputs_axis and len(shape) == 3 and shape[1] % axis_size(inputs_axis) == 0:
        axes[1] = inputs_axis
    _place(variable, axes)


def place_scale(variable: keras.Variable, kernel_path: str) -> None:
    """Lays the scales or zero points of a rounded matrix out with the matrix, on the model axis.

    Args:
        variable: `keras.Variable` [J], or [G, J] for groups of consecutive inputs, of which Keras
            has made a copy on each device.
        kernel_path: str, the path of the matrix [I, J].
    """
    distribution = keras.distribution.distribution()
    layout = None if distribution is None else distribution.get_tensor_layout(kernel_path)
    if layout is None:
        return
    weights_axis = _weights_axis() or distribution.batch_dim_name
    inputs_axis, outputs_axis = (None if axis == weights_axis else axis for axis in layout.axes)
    axes = [outputs_axis]
    if len(variable.shape) == 2:
        axes = [inputs_axis, outputs_axis]
    _place(variable, axes)


def _place(variable: keras.Variable, axes: Sequence[str | None]) -> None:
    mesh = keras.distribution.distribution().device_mesh
    sizes = zip(axes, variable.shape, strict=True)
    axes = [axis if axis and size % axis_size(axis) == 0 else None for axis, size in sizes]
    if any(axes):
        set_layout(variable, keras.distribution.TensorLayout(axes, mesh))
