"""Defines the kernels of the linear recurrence, forwards and backwards.

Forwards, a kernel reads x and a and writes h. Backwards, another reads the gradient of h, a and h,
and writes the gradients of x and a. Both visit blocks of `CHUNK` steps and at most `WIDTH` channels
in the order of time, or in reverse, and carry the state of a block's channels from one to the next.
A TPU keeps [T, L] in tiles of 8 steps x 128 channels, so within a block the S = 8 steps of a tile
are computed at once: three doublings give them as if they had begun with zeros, and one product
adds what enters the tile.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

STEPS = 8  # S, of a tile in float32
GROUP = 16  # steps of a tile in bfloat16
LANES = 128  # channels of a tile
WIDTH = 1024
CHUNK = 256  # x WIDTH in float32 is 1 MB; backwards ten such blocks are in fast memory at once


def forward(
    options: Any, x: jax.Array, a: jax.Array, initial_state: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Computes h [B, T, L] and its last step [B, L], both in float32."""
    blocks = Blocks(x.shape)
    sequence, state = blocks.sequence(), blocks.state()
    h, last = _call(
        functools.partial(_forward, length=x.shape[1]),
        blocks,
        options,
        inputs=(x, a, initial_state[:, None]),
        in_specs=(sequence, sequence, state),
        outputs=(
            jax.ShapeDtypeStruct(x.shape, jnp.float32),
            jax.ShapeDtypeStruct((x.shape[0], 1, x.shape[2]), jnp.float32),
        ),
        out_specs=(sequence, state),
    )
    return h, last[:, 0]


def backward(
    options: Any,
    h_gradient: jax.Array,
    a: jax.Array,
    h: jax.Array,
    initial_state: jax.Array,
    last_gradient: jax.Array,
) -> tuple[jax.Array, ...]:
    """Computes the gradients of x and a [B, T, L] and of the initial state [B, L]."""
    blocks = Blocks(a.shape, reverse=True)
    sequence, state = blocks.sequence(), blocks.state()
    *gradients, initial_gradient = _call(
        functools.partial(_backward, length=a.shape[1]),
        blocks,
        options,
        inputs=(h_gradient, a, h, h, initial_state[:, None], last_gradient[:, None]),
        in_specs=(sequence, sequence, sequence, blocks.tile_before(), state, state),
        outputs=(
            jax.ShapeDtypeStruct(a.shape, options.x_dtype),
            jax.ShapeDtypeStruct(a.shape, a.dtype),
            jax.ShapeDtypeStruct((a.shape[0], 1, a.shape[2]), jnp.float32),
        ),
        out_specs=(sequence, sequence, state),
    )
    return (*gradients, initial_gradient[:, 0])


class Blocks:
    """Divides [B, T, L] into the blocks that kernels visit.

    They need not divide T and L: of a block that reaches beyond an array nothing is written there,
    and what is read there is undefined.

    Args:
        shape: B, T and L.
        reverse: bool, whether the last steps come first.
    """

    steps: int
    channels: int
    grid: tuple[int, int, int]

    def __init__(self, shape: Sequence[int], reverse: bool = False) -> None:
        batch, length, width = shape
        self.steps = min(CHUNK, pl.cdiv(length, GROUP) * GROUP)
        tiles, most = pl.cdiv(width, LANES), WIDTH // LANES
        fewest = pl.cdiv(tiles, most)
        count = next((n for n in range(fewest, 2 * fewest) if tiles % n == 0), fewest)
        self.channels = pl.cdiv(tiles, count) * LANES if count > 1 else width
        chunks = pl.cdiv(length, self.steps)
        self.grid = (batch, count, chunks)
        self._chunk = (lambda t: chunks - 1 - t) if reverse else (lambda t: t)

    def sequence(self) -> pl.BlockSpec:
        """Returns the specification of a block of [B, T, L]."""
        shape = (None, self.steps, self.channels)
        return pl.BlockSpec(shape, lambda b, l, t: (b, self._chunk(t), l))

    def tile_before(self) -> pl.BlockSpec:
        """Returns that of the tile before a block; at the first block, of its own first tile."""
        tiles = self.steps // STEPS
        return pl.BlockSpec(
            (None, STEPS, self.channels),
            lambda b, l, t: (b, jnp.maximum(self._chunk(t) * tiles - 1, 0), l),
        )

    def state(self) -> pl.BlockSpec:
        """Returns that of the channels of a block, of [B, 1, L]."""
        return pl.BlockSpec((None, 1, self.channels), lambda b, l, t: (b, 0, l))


def _call(
    kernel: functools.partial,
    blocks: Blocks,
    options: Any,
    inputs: Sequence[jax.Array],
    in_specs: Sequence[pl.BlockSpec],
    outputs: Sequence[jax.ShapeDtypeStruct],
    out_specs: Sequence[pl.BlockSpec],
) -> Any:
    """Runs a kernel on all blocks, those of the same channels one after another."""
    return pl.pallas_call(
        kernel,
        grid=blocks.grid,
        in_specs=in_specs,
        out_specs=out_specs,
        out_shape=outputs,
        scratch_shapes=[pltpu.VMEM((1, blocks.channels), jnp.float32)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        cost_estimate=pl.CostEstimate(
            flops=20 * inputs[0].size,  # with those of the doublings
            bytes_accessed=sum(
                _bytes_moved(spec, blocks.grid, x)
                for spec, x in zip((*in_specs, *out_specs), (*inputs, *outputs), strict=True)
            ),
            transcendentals=0,
        ),
        interpret=options.interpret,
        name=f"linear_recurrence{kernel.func.__name__}",
    )(*inputs)


def _bytes_moved(spec: pl.BlockSpec, grid: Sequence[int], x: Any) -> int:
    """Counts what a kernel reads of an array, or writes: XLA plans with it, but cannot see it."""
    visited = math.prod(grid) * math.prod(size or 1 for size in spec.block_shape)
    return min(visited, x.size) * x.dtype.itemsize


def _forward(
    x_ref: Any,
    a_ref: Any,
    initial_ref: Any,
    h_ref: Any,
    last_ref: Any,
    carried_ref: Any,
    *,
    length: int,
) -> None:
    """Computes a block of h, and behind the last block the last h."""
    steps = x_ref.shape[0]

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        carried_ref[...] = initial_ref[...]

    def step(i: jax.Array, carried_1L: jax.Array) -> jax.Array:
        group = pl.ds(pl.multiple_of(i * GROUP, GROUP), GROUP)
        x_GL, a_GL = x_ref[group].astype("float32"), a_ref[group].astype("float32")
        tiles = []
        for start in range(0, GROUP, STEPS):
            tile = slice(start, start + STEPS)
            h_SL, decay_SL = _accumulate(x_GL[tile], a_GL[tile], reverse=False)
            h_SL += decay_SL * carried_1L
            tiles.append(h_SL)
            carried_1L = h_SL[-1:]
        h_ref[group] = jnp.concatenate(tiles)
        return carried_1L

    carried_ref[...] = lax.fori_loop(0, steps // GROUP, step, carried_ref[...])

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _() -> None:
        last_ref[...] = h_ref[pl.ds((length - 1) % steps, 1)]


def _backward(
    h_gradient_ref: Any,
    a_ref: Any,
    h_ref: Any,
    h_before_ref: Any,
    initial_ref: Any,
    last_gradient_ref: Any,
    x_gradient_ref: Any,
    a_gradient_ref: Any,
    initial_gradient_ref: Any,
    carried_ref: Any,
    *,
    length: int,
) -> None:
    """Computes a block of the gradients, and behind the first block that of the initial state.

    Carries `c_t = a_t * g_t`, where `g_t = dh_t + c_{t+1}`, so that each a is read once.
    """
    steps = a_ref.shape[0]
    chunk = pl.num_programs(2) - 1 - pl.program_id(2)

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        carried_ref[...] = last_gradient_ref[...]

    h_before_1L = jnp.where(chunk == 0, initial_ref[...], h_before_ref[STEPS - 1 :])

    def step(i: jax.Array, carried_1L: jax.Array) -> jax.Array:
        i = steps // GROUP - 1 - i
        group = pl.ds(pl.multiple_of(i * GROUP, GROUP), GROUP)
        gradient_GL, a_GL = h_gradient_ref[group], a_ref[group].astype("float32")
        if length % steps:
            # Steps after the last pass the gradient of the last state on.
            step_GL = lax.broadcasted_iota(jnp.int32, a_GL.shape, 0) + chunk * steps + i * GROUP
            gradient_GL = jnp.where(step_GL < length, gradient_GL, 0.0)
            a_GL = jnp.where(step_GL < length, a_GL, 1.0)
        h_GL = h_ref[group]
        earlier = pl.ds(pl.multiple_of(jnp.maximum(i * GROUP - STEPS, 0), STEPS), STEPS)
        before_1L = jnp.where(i == 0, h_before_1L, h_ref[earlier][STEPS - 1 :])
        befores_1L = [before_1L, h_GL[STEPS - 1 : STEPS]]
        x_tiles, a_tiles = [], []
        for n in reversed(range(GROUP // STEPS)):
            tile = slice(n * STEPS, (n + 1) * STEPS)
            a_SL = a_GL[tile]
            step_SL = lax.broadcasted_iota(jnp.int32, a_SL.shape, 0)
            later_a_SL = jnp.where(step_SL == STEPS - 1, 1.0, pltpu.roll(a_SL, STEPS - 1, 0))
            gradient_SL, decay_SL = _accumulate(gradient_GL[tile], later_a_SL, reverse=True)
            gradient_SL += decay_SL * carried_1L
            carried_1L = (a_SL * gradient_SL)[:1]
            before_SL = jnp.where(step_SL == 0, befores_1L[n], pltpu.roll(h_GL[tile], 1, 0))
            x_tiles.insert(0, gradient_SL)
            a_tiles.insert(0, gradient_SL * before_SL)
        x_gradient_ref[group] = jnp.concatenate(x_tiles).astype(x_gradient_ref.dtype)
        a_gradient_ref[group] = jnp.concatenate(a_tiles).astype(a_gradient_ref.dtype)
        return carried_1L

    carried_ref[...] = lax.fori_loop(0, steps // GROUP, step, carried_ref[...])

    @pl.when(chunk == 0)
    def _() -> None:
        initial_gradient_ref[...] = carried_ref[...]


def _accumulate(x_SL: jax.Array, a_SL: jax.Array, reverse: bool) -> tuple[jax.Array, jax.Array]:
    """Computes the recurrence of a tile from zeros, and the product of a up to each step.

    In reverse, `h_s = a_s * h_{s+1} + x_s`.
    """
    step_SL = lax.broadcasted_iota(jnp.int32, x_SL.shape, 0)
    for distance in (1, 2, 4):
        shift = STEPS - distance if reverse else distance
        is_inside = step_SL < STEPS - distance if reverse else step_SL >= distance
        # Chosen, not multiplied by zero: what comes around the edge may be infinite.
        x_SL += a_SL * jnp.where(is_inside, pltpu.roll(x_SL, shift, 0), 0.0)
        a_SL *= jnp.where(is_inside, pltpu.roll(a_SL, shift, 0), 1.0)
    return x_SL, a_SL
