"""Finds the entries of the layout map in force."""

import keras

# Keys of a `keras.distribution.LayoutMap` for activations begin so; weights have other paths.
PREFIX = "activations/"
# The entry for the gates of the recurrence: H blocks of I inputs and J outputs.
GATES = "gates"

# `keras.distribution` is JAX's. Elsewhere nobody asks for it, which `torch.compile` cannot read.
_IS_JAX = keras.config.backend() == "jax"


def layout_in_force(name):
    """Returns an entry of the layout map in force.

    Args:
        name: `GATES`, or letters of `activations.ACTIVATIONS`.

    Returns:
        `keras.distribution.TensorLayout`, or None without a distribution, or with one whose layout
        map is not from `RGemmaBackbone.get_layout_map`.
    """
    distribution = keras.distribution.distribution() if _IS_JAX else None
    return None if distribution is None else distribution.get_tensor_layout(PREFIX + name)


def row_shards(count):
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


def axis_size(axis):
    """Returns the number of devices along an axis of the mesh in force, int."""
    mesh = keras.distribution.distribution().device_mesh
    return mesh.shape[tuple(mesh.axis_names).index(axis)]
