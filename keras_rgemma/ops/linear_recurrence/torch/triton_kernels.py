"""Computes the linear recurrence and its gradients on a GPU, each in one pass over the arrays.

A program owns C channels of one row of the batch and walks over time in chunks of P spans of S
steps. A thread owns one channel of one span. It loads all of its steps before it needs the first:
that keeps enough bytes in flight to hide the memory, however few programs there are. It reduces its
span to two numbers, the state that leaves the span if zero enters and the product of a. A scan over
the spans gives the state that enters each, and the thread runs through its steps again, which are
still in registers. So each element is read once and written once.
"""

import triton
import triton.language as tl

IS_INTERPRETED = triton.knobs.runtime.interpret


@triton.jit
def _join(
    decay_1, state_1, decay_before_1, state_before_1, decay, state, decay_before, state_before
):
    """Joins two runs of neighbouring spans, in the order in which they are walked.

    Each is a product of a, the state that leaves the run if zero enters, and both again without
    the last span of the run. (To take the neighbour's row afterwards, `tl.gather` chooses a layout
    for the whole kernel, in which loads wait for one another.)
    """
    return (
        decay_1 * decay,
        decay * state_1 + state,
        decay_1 * decay_before,
        decay_before * state_1 + state_before,
    )


@triton.jit(do_not_specialize=["length"])
def linear_recurrence_kernel(
    x_ptr,
    a_ptr,
    initial_state_ptr,
    h_ptr,
    last_ptr,
    length,
    WIDTH: tl.constexpr,
    SPANS: tl.constexpr,
    STEPS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Computes `h_t = a_t * h_{t-1} + x_t`; x, a, h [B, T, L], initial_state, last [B, L]."""
    blocks: tl.constexpr = (WIDTH + CHANNELS - 1) // CHANNELS
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    channel = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    exists = channel < WIDTH
    span = tl.arange(0, SPANS)[:, None]
    zero = tl.zeros((SPANS, CHANNELS), tl.float32)
    one = tl.full((SPANS, CHANNELS), 1.0, tl.float32)

    step = span * STEPS
    offset = batch * length * WIDTH + step * WIDTH + channel
    state_offset = batch * WIDTH + channel
    carry = tl.load(initial_state_ptr + state_offset, mask=exists, other=0.0)
    for _ in range(0, length, SPANS * STEPS):
        steps_left = tl.where(exists, length - step, 0)
        x, a = (), ()
        for s in tl.static_range(STEPS):
            # A step after the end keeps the state.
            at, mask = offset + s * WIDTH, s < steps_left
            x += (tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32),)
            a += (tl.load(a_ptr + at, mask=mask, other=1.0).to(tl.float32),)
        state, decay = zero, one
        for s in tl.static_range(STEPS):
            state = a[s] * state + x[s]
            decay = a[s] * decay
        run = (decay, state, one, zero)
        decay, state, decay_before, state_before = tl.associative_scan(run, 0, _join)
        leaving = tl.where(span == SPANS - 1, decay * carry + state, 0.0)
        state = decay_before * carry + state_before
        carry = tl.sum(leaving, axis=0, keep_dims=True)
        for s in tl.static_range(STEPS):
            state = a[s] * state + x[s]
            tl.store(h_ptr + offset + s * WIDTH, state, mask=s < steps_left)
        step += SPANS * STEPS
        offset += SPANS * STEPS * WIDTH
    tl.store(last_ptr + state_offset, carry, mask=exists)


@triton.jit(do_not_specialize=["length"])
def linear_recurrence_gradient_kernel(
    h_gradient_ptr,
    last_gradient_ptr,
    a_ptr,
    initial_state_ptr,
    h_ptr,
    x_gradient_ptr,
    a_gradient_ptr,
    initial_gradient_ptr,
    length,
    WIDTH: tl.constexpr,
    SPANS: tl.constexpr,
    STEPS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Computes `dx_t = dh_t + c_t`, `da_t = dx_t * h_{t-1}`, `c_{t-1} = a_t * dx_t` backwards.

    The state that runs is c, the gradient by the state that leaves a step: in the beginning that by
    the last state, in the end that by the initial one.
    """
    blocks: tl.constexpr = (WIDTH + CHANNELS - 1) // CHANNELS
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    channel = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    exists = channel < WIDTH
    span = tl.arange(0, SPANS)[:, None]
    zero = tl.zeros((SPANS, CHANNELS), tl.float32)
    one = tl.full((SPANS, CHANNELS), 1.0, tl.float32)

    chunks = tl.cdiv(length, SPANS * STEPS)
    step = ((chunks - 1) * SPANS + span) * STEPS
    offset = batch * length * WIDTH + step.to(tl.int64) * WIDTH + channel
    state_offset = batch * WIDTH + channel
    initial_state = tl.load(initial_state_ptr + state_offset, mask=exists, other=0.0)
    carry = tl.load(last_gradient_ptr + state_offset, mask=exists, other=0.0)
    for _ in range(chunks):
        steps_left = tl.where(exists, length - step, 0)
        h_gradient, a, before = (), (), ()
        for s in tl.static_range(STEPS):
            at, mask = offset + s * WIDTH, s < steps_left
            h_gradient += (tl.load(h_gradient_ptr + at, mask=mask, other=0.0).to(tl.float32),)
            a += (tl.load(a_ptr + at, mask=mask, other=1.0).to(tl.float32),)
            if s == 0:
                mask = mask & (step > 0)  # before the first step of all stands the initial state
                before += (tl.load(h_ptr + at - WIDTH, mask=mask, other=initial_state),)
            else:
                before += (tl.load(h_ptr + at - WIDTH, mask=mask, other=0.0),)
        state, decay = zero, one
        for s in tl.static_range(STEPS - 1, -1, -1):
            state = a[s] * (h_gradient[s] + state)
            decay = a[s] * decay
        run = (decay, state, one, zero)
        run = tl.associative_scan(run, 0, _join, reverse=True)
        decay, state, decay_before, state_before = run
        leaving = tl.where(span == 0, decay * carry + state, 0.0)
        state = decay_before * carry + state_before
        carry = tl.sum(leaving, axis=0, keep_dims=True)
        for s in tl.static_range(STEPS - 1, -1, -1):
            at, mask = offset + s * WIDTH, s < steps_left
            x_gradient = h_gradient[s] + state
            state = a[s] * x_gradient
            tl.store(x_gradient_ptr + at, x_gradient, mask=mask)
            tl.store(a_gradient_ptr + at, x_gradient * before[s], mask=mask)
        step -= SPANS * STEPS
        offset -= SPANS * STEPS * WIDTH
    tl.store(initial_gradient_ptr + state_offset, carry, mask=exists)
