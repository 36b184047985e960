"""Defines the kernels of the linear recurrence for GPUs, forwards and backwards.

A program owns C channels of one row of the batch and walks over time in chunks of P spans of S
steps; a thread owns one channel of one span. It loads all of its steps before it needs the first,
which keeps enough bytes in flight, and reduces its span to two numbers: the state that leaves the
span if zero enters, and the product of a. From these follows the state that enters each span, one
span after another, and the thread runs through its steps again, which are still in registers. So
each element is read once and written once.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from keras_rgemma.types import Shape

CHANNELS, SPANS = 32, 8
STEPS, GRADIENT_STEPS = 32, 16  # a thread holds two values a step forwards, three backwards


def forward(options: Any, x: jax.Array, a: jax.Array, initial_state: jax.Array) -> Any:
    """Computes h [B, T, L] and its last step [B, L], both in float32."""
    return _call(
        functools.partial(_forward, length=x.shape[1], width=x.shape[2]),
        options,
        (x, a, initial_state),
        (
            jax.ShapeDtypeStruct(x.shape, jnp.float32),
            jax.ShapeDtypeStruct(initial_state.shape, jnp.float32),
        ),
    )


def backward(
    options: Any,
    h_gradient: jax.Array,
    a: jax.Array,
    h: jax.Array,
    initial_state: jax.Array,
    last_gradient: jax.Array,
) -> Any:
    """Computes the gradients of x and a [B, T, L] and of the initial state [B, L]."""
    return _call(
        functools.partial(_backward, length=a.shape[1], width=a.shape[2]),
        options,
        (h_gradient, a, h, initial_state, last_gradient),
        (
            jax.ShapeDtypeStruct(a.shape, options.x_dtype),
            jax.ShapeDtypeStruct(a.shape, a.dtype),
            jax.ShapeDtypeStruct(initial_state.shape, jnp.float32),
        ),
    )


def _call(
    kernel: functools.partial,
    options: Any,
    inputs: Sequence[jax.Array],
    outputs: Sequence[jax.ShapeDtypeStruct],
) -> Any:
    """Runs a kernel on all rows of the batch and all blocks of channels, at the same time."""
    batch, _, width = inputs[0].shape
    return pl.pallas_call(
        kernel,
        grid=(batch, pl.cdiv(width, CHANNELS)),
        out_shape=outputs,
        compiler_params=pltriton.CompilerParams(num_warps=SPANS, num_stages=1),
        cost_estimate=_cost(inputs, outputs),
        interpret=options.interpret,
        name=f"linear_recurrence{kernel.func.__name__}",
    )(*inputs)


def _cost(
    inputs: Sequence[jax.Array], outputs: Sequence[jax.ShapeDtypeStruct]
) -> pl.CostEstimate | None:
    """Tells XLA what a kernel costs; None for sizes that are symbols of an export."""
    if not isinstance(inputs[0].size, int):
        return None
    return pl.CostEstimate(
        flops=6 * inputs[0].size,
        bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*inputs, *outputs)),
        transcendentals=0,
    )


class _Program:
    """Knows which elements a program reads and writes."""

    def __init__(self, length: int, width: int) -> None:
        self.row = pl.program_id(0)
        self.channel_1C = pl.program_id(1) * CHANNELS + _iota((1, CHANNELS), 1)
        self.span_P1 = _iota((SPANS, 1), 0)
        self.has_channel_1C = self.channel_1C < width
        self.length = length

    def load(self, ref: Any, step_P1: jax.Array, other: float = 0.0) -> jax.Array:
        """Reads steps of [B, T, L]: float32 [P, C], `other` outside of the array."""
        mask = (step_P1 >= 0) & (step_P1 < self.length) & self.has_channel_1C
        at = ref.at[self.row, step_P1, self.channel_1C]
        return pltriton.load(at, mask=mask, other=jnp.array(other, ref.dtype)).astype("float32")

    def store(self, ref: Any, step_P1: jax.Array, value_PC: jax.Array) -> None:
        mask = (step_P1 < self.length) & self.has_channel_1C
        at = ref.at[self.row, step_P1, self.channel_1C]
        pltriton.store(at, value_PC.astype(ref.dtype), mask=mask)

    def load_state(self, ref: Any) -> jax.Array:
        """Reads the channels of [B, L], float32 [1, C]."""
        at = ref.at[self.row, self.channel_1C]
        return pltriton.load(at, mask=self.has_channel_1C, other=0.0)

    def store_state(self, ref: Any, state_1C: jax.Array) -> None:
        pltriton.store(ref.at[self.row, self.channel_1C], state_1C, mask=self.has_channel_1C)

    def enter(
        self, decay_PC: jax.Array, state_PC: jax.Array, carry_1C: jax.Array, order: Iterable[int]
    ) -> tuple[jax.Array, jax.Array]:
        """Computes the state that enters each span, [P, C], and the one that leaves the last.

        Args:
            decay_PC: the product of a of each span.
            state_PC: the state that leaves each span if zero enters.
            carry_1C: the state that enters the first span.
            order: the spans in the order in which they are walked.
        """
        entering_PC = jnp.zeros_like(state_PC)
        for span in order:
            is_here = self.span_P1 == span
            entering_PC = jnp.where(is_here, carry_1C, entering_PC)
            leaving_PC = jnp.where(is_here, decay_PC * carry_1C + state_PC, 0.0)
            carry_1C = jnp.sum(leaving_PC, axis=0, keepdims=True)
        return entering_PC, carry_1C


def _iota(shape: Shape, axis: int) -> jax.Array:
    return lax.broadcasted_iota(jnp.int32, shape, axis)


def _forward(
    x_ref: Any, a_ref: Any, initial_ref: Any, h_ref: Any, last_ref: Any, *, length: int, width: int
) -> None:
    """Computes `h_t = a_t * h_{t-1} + x_t`."""
    program = _Program(length, width)

    def walk(chunk: jax.Array, carry_1C: jax.Array) -> jax.Array:
        first_P1 = (chunk * SPANS + program.span_P1) * STEPS
        # A step after the end keeps the state.
        x_S = [program.load(x_ref, first_P1 + s) for s in range(STEPS)]
        a_S = [program.load(a_ref, first_P1 + s, 1.0) for s in range(STEPS)]
        state_PC, decay_PC = x_S[0], a_S[0]
        for x_PC, a_PC in zip(x_S[1:], a_S[1:], strict=True):
            state_PC = a_PC * state_PC + x_PC
            decay_PC = a_PC * decay_PC
        state_PC, carry_1C = program.enter(decay_PC, state_PC, carry_1C, range(SPANS))
        for s in range(STEPS):
            state_PC = a_S[s] * state_PC + x_S[s]
            program.store(h_ref, first_P1 + s, state_PC)
        return carry_1C

    chunks = pl.cdiv(length, SPANS * STEPS)
    carry_1C = lax.fori_loop(0, chunks, walk, program.load_state(initial_ref))
    program.store_state(last_ref, carry_1C)


def _backward(
    h_gradient_ref: Any,
    a_ref: Any,
    h_ref: Any,
    initial_ref: Any,
    last_gradient_ref: Any,
    x_gradient_ref: Any,
    a_gradient_ref: Any,
    initial_gradient_ref: Any,
    *,
    length: int,
    width: int,
) -> None:
    """Computes `dx_t = dh_t + c_t`, `da_t = dx_t * h_{t-1}`, `c_{t-1} = a_t * dx_t` backwards.

    The state that runs is c, the gradient by the state that leaves a step: in the beginning that by
    the last state, in the end that by the initial one.
    """
    program = _Program(length, width)
    initial_1C = program.load_state(initial_ref)
    chunks = pl.cdiv(length, SPANS * GRADIENT_STEPS)

    def walk(i: jax.Array, carry_1C: jax.Array) -> jax.Array:
        first_P1 = ((chunks - 1 - i) * SPANS + program.span_P1) * GRADIENT_STEPS
        steps = range(GRADIENT_STEPS)
        gradient_S = [program.load(h_gradient_ref, first_P1 + s) for s in steps]
        a_S = [program.load(a_ref, first_P1 + s, 1.0) for s in steps]
        before_S = [program.load(h_ref, first_P1 + s - 1) for s in steps]
        # Before the first step of all stands the initial state.
        before_S[0] = jnp.where(first_P1 == 0, initial_1C, before_S[0])
        state_PC = jnp.zeros((SPANS, CHANNELS), jnp.float32)
        decay_PC = jnp.ones((SPANS, CHANNELS), jnp.float32)
        for s in reversed(steps):
            state_PC = a_S[s] * (gradient_S[s] + state_PC)
            decay_PC = a_S[s] * decay_PC
        spans = reversed(range(SPANS))
        state_PC, carry_1C = program.enter(decay_PC, state_PC, carry_1C, spans)
        for s in reversed(steps):
            x_gradient_PC = gradient_S[s] + state_PC
            state_PC = a_S[s] * x_gradient_PC
            program.store(x_gradient_ref, first_P1 + s, x_gradient_PC)
            program.store(a_gradient_ref, first_P1 + s, x_gradient_PC * before_S[s])
        return carry_1C

    carry_1C = lax.fori_loop(0, chunks, walk, program.load_state(last_gradient_ref))
    program.store_state(initial_gradient_ref, carry_1C)
