"""Finds the entries of the layout map in force."""

import keras

# Keys of a `keras.distribution.LayoutMap` for activations begin so; weights have other paths.
PREFIX = "activations/"
# The entry for the gates of the recurrence: H blocks of I inputs and J outputs.
GATES = "gates"

# `keras.distribution` is JAX's. Elsewhere nobody asks for it, which `torch.compile` cannot read.
_IS_JAX = keras.config.backend() == "jax"


def layout_in_force(name: str) -> keras.distribution.TensorLayout | None:
    """Returns an entry of the layout map in force.

    Args:
        name: `GATES`, or letters of `activations.ACTIVATIONS`.

    Returns:
        `keras.distribution.TensorLayout`, or None without a distribution, or with one whose layout
        map is not from `RGemmaBackbone.get_layout_map`.
    """
    distribution = keras.distribution.distribution() if _IS_JAX else None
    return None if distribution is None else distribution.get_tensor_layout(PREFIX + name)


def row_shards(count: object) -> int:
    """Returns into how many parts rows are divided along the data axis, int.

    Args:
        count: int, rows or tokens; 1 is returned where the axis does not divide them.
    """
    distribution = keras.distribution.distribution()
    is_ours = layout_in_force("BTD") is not None
    if not is_ours and not isinstance(distribution, keras.distribution.DataParallel):
        return 1
    devices = axis_size(distribution.batch_dim_name)
    return devices if isinstance(count, int) and count % devices == 0 else 1


def sequence_axis() -> str | None:
    """Returns the axis of the mesh in force along which the residual stream is divided over time.

    Returns:
        str; None without `sequence_parallel_dim_name` in `RGemmaBackbone.get_layout_map`.
    """
    layout = layout_in_force("BTD")
    return None if layout is None else layout.axes[1]


def time_axis(length: object) -> str | None:
    """Returns the axis of the mesh in force along which all arrays of a step are divided over time.

    Args:
        length: int, T.

    Returns:
        str; None where each device has all tokens of its rows, which is also so for a `length` that
        the axis does not divide.
    """
    layout = layout_in_force("BTL")
    axis = None if layout is None else layout.axes[1]
    is_divided = axis is not None and isinstance(length, int) and length % axis_size(axis) == 0
    return axis if is_divided and axis_size(axis) > 1 else None


def time_shards(length: object) -> int:
    """Returns into how many parts `length` tokens of a row are divided among devices, int."""
    axis = time_axis(length)
    return 1 if axis is None else axis_size(axis)


def token_shards(count: int) -> int:
    """Returns into how many parts tokens of all rows are divided among devices, int.

    Args:
        count: int, tokens; if rows and time do not divide them, rows alone may.
    """
    rows = row_shards(count)
    return rows * time_shards(count // rows)


def axis_size(axis: str) -> int:
    """Returns the number of devices along an axis of the mesh in force, int."""
    mesh = keras.distribution.distribution().device_mesh
    return mesh.shape[tuple(mesh.axis_names).index(axis)]
