"""Divides the work of a kernel among devices."""

from collections.abc import Callable
from typing import Any

import jax
import keras
from jax.sharding import PartitionSpec


def mesh_in_force() -> tuple[jax.sharding.Mesh | None, str | None]:
    """Returns the mesh of the `keras.distribution` in force and its batch axis, or two Nones."""
    distribution = keras.distribution.distribution()
    if distribution is None:
        return None, None
    return distribution.device_mesh.backend_mesh, distribution.batch_dim_name


def on_shards(
    function: Callable[..., Any],
    mesh: jax.sharding.Mesh | None,
    batch_axis: str | None,
    *arrays: jax.Array,
) -> Any:
    """Calls a function of arrays on each device of a mesh, with its share of them.

    XLA cannot look into a kernel, so it cannot divide one among devices. The rows of B are divided
    along the batch axis of the mesh and the channels of L along all its other axes, where the
    number of devices divides theirs; else each device does all.

    Args:
        function: function of arrays [B, T, L] and [B, L] that returns a tuple of such arrays. No
            row and no channel of a result depends on another one.
        mesh: `jax.sharding.Mesh`, or None for one device.
        batch_axis: str, the axis of the mesh for rows.
        *arrays: arrays; the first one is [B, T, L].
    """
    if mesh is None:
        return function(*arrays)
    other_axes = tuple(name for name in mesh.axis_names if name != batch_axis)
    batch, _, width = arrays[0].shape
    rows = _divided(batch, (batch_axis,), mesh)
    channels = _divided(width, other_axes, mesh)
    specs = {2: PartitionSpec(rows, channels), 3: PartitionSpec(rows, None, channels)}
    spec_of = lambda x: specs[len(x.shape)]  # noqa: E731
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=tuple(map(spec_of, arrays)),
        out_specs=tuple(map(spec_of, jax.eval_shape(function, *arrays))),
        check_vma=False,  # which kernels do not state
    )(*arrays)


def _divided(size: int, axes: tuple[str, ...], mesh: jax.sharding.Mesh) -> tuple[str, ...]:
    """Returns the axes of the mesh if `size` can be divided among their devices, else none."""
    devices = 1
    for axis in axes:
        devices *= mesh.shape[axis]
    return axes if size % devices == 0 else ()
