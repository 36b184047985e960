"""Computes functions of rows on devices that divide the rows over time, on JAX."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from keras_rgemma.sharding.activations import layout_of
from keras_rgemma.sharding.entries import time_axis


class TimeDivision(NamedTuple):
    """Describes how devices divide the arrays of an operation, one dimension of which is time.

    It has the mesh, since a gradient may be traced where the distribution is not in force.

    Attributes:
        mesh: `jax.sharding.Mesh`.
        axis: str, the axis of the mesh for T.
        axes: tuple of pairs of a letter and the axis of the mesh for it, or None.
    """

    mesh: jax.sharding.Mesh
    axis: str
    axes: tuple[tuple[str, str | None], ...]

    @property
    def parts(self) -> int:
        """Returns into how many parts T is divided, int."""
        return self.mesh.shape[self.axis]

    def run(
        self,
        function: Callable[..., Any],
        inputs: tuple[str, ...],
        outputs: str | tuple[str, ...],
        *arrays: jax.Array,
    ) -> Any:
        """Calls a function on each device with its parts of arrays.

        Args:
            function: function of arrays that returns one array, or a tuple of them.
            inputs: tuple of str, the letters of each array. Letters that are not in `axes` are
                whole on each device.
            outputs: the letters of the result, a str, or a tuple of str.
            *arrays: arrays.
        """
        axes = dict(self.axes)
        spec_of = lambda letters: PartitionSpec(*map(axes.get, letters))  # noqa: E731
        return jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=tuple(map(spec_of, inputs)),
            out_specs=jax.tree.map(spec_of, outputs),
            check_vma=False,  # which kernels do not state
        )(*arrays)


def time_division(letters: str, shape: Sequence[int]) -> TimeDivision | None:
    """Returns the `TimeDivision` of an array in the distribution in force.

    Args:
        letters: str of `ACTIVATIONS`, with a T.
        shape: tuple of ints.

    Returns:
        `TimeDivision`, or None where each device has all tokens of its rows.
    """
    axis = time_axis(shape[letters.index("T")])
    if axis is None:
        return None
    layout = layout_of(letters, shape)
    pairs = tuple(zip(letters, layout.axes, strict=True))
    return TimeDivision(layout.device_mesh.backend_mesh, axis, pairs)


def tokens_before(
    x: jax.Array, count: int, division: TimeDivision, first: jax.Array | None = None
) -> jax.Array:
    """Returns the tokens before a device's part of a row, from the devices that have them.

    Args:
        x: array [B, T, ...], the part.
        count: int, how many tokens. If a part has fewer, they come from several devices.
        division: `TimeDivision`.
        first: array [B, count, ...], the tokens before the row; None for zeros.

    Returns:
        array [B, count, ...], the nearest token last.
    """
    size, parts = x.shape[1], division.parts
    pieces, missing = [], count
    for hop in range(1, parts):
        taken = min(size, missing)
        if not taken:
            break
        pairs = [(i, i + hop) for i in range(parts - hop)]  # zeros where nobody sends
        pieces.insert(0, lax.ppermute(x[:, size - taken :], division.axis, pairs))
        missing -= taken
    pads = [(0, 0), (missing, 0)] + [(0, 0)] * (x.ndim - 2)
    before = jnp.pad(jnp.concatenate(pieces, axis=1), pads)
    if first is None:
        return before
    # The tokens of this row go back as far as the devices to the left reach.
    in_row = jnp.minimum(lax.axis_index(division.axis) * size, count)
    shifted = lax.dynamic_slice_in_dim(
        jnp.concatenate([first.astype(x.dtype), jnp.zeros_like(before)], axis=1), in_row, count, 1
    )
    is_in_row = jnp.arange(count) >= count - in_row
    return jnp.where(is_in_row.reshape(-1, *[1] * (x.ndim - 2)), before, shifted)
