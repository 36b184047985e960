"""Computes what stands between the matrix products of a token, each in one kernel of a GPU.

At one token a row these operations move little, so their number is what they cost. Numbers are
rounded where the layers round them.
"""

import triton
import triton.language as tl


@triton.jit
def _expm1(y):
    """Computes exp(y) - 1 without cancellation: the error of exp(y) cancels in the quotient."""
    u = tl.exp(y)
    near = (u - 1.0) * (y / tl.log(u))
    return tl.where(u == 1.0, y, tl.where(u < 0.5, u - 1.0, near))


@triton.jit
def _softplus(x):
    """Computes log(1 + exp(x)) without overflow and without cancellation."""
    z = tl.exp(-tl.abs(x))
    u = 1.0 + z
    log1p = tl.where(u == 1.0, z, tl.log(u) * (z / (u - 1.0)))
    return tl.maximum(x, 0.0) + log1p


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def rms_norm_kernel(x_ptr, scale_ptr, y_ptr, epsilon, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Normalizes rows: x, y [N, D], scale [D]."""
    column = tl.arange(0, BLOCK)
    exists = column < WIDTH
    at = tl.program_id(0).to(tl.int64) * WIDTH + column
    x = tl.load(x_ptr + at, mask=exists, other=0.0).to(tl.float32)
    scale = 1.0 + tl.load(scale_ptr + column, mask=exists, other=0.0).to(tl.float32)
    root = 1.0 / tl.sqrt(tl.sum(x * x, axis=0) / WIDTH + epsilon)
    tl.store(y_ptr + at, (x * root * scale).to(y_ptr.dtype.element_ty), mask=exists)


@triton.jit
def rg_lru_kernel(
    x_ptr,
    input_gate_ptr,
    a_gate_ptr,
    a_param_ptr,
    state_ptr,
    is_token_ptr,
    h_ptr,
    new_state_ptr,
    decay_scale,
    WIDTH: tl.constexpr,
    HAS_MASK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Takes a step of the RG-LRU: x, both gates, h [B, L], states [B, L], a_param [L]."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    exists = column < WIDTH
    at = row * WIDTH + column
    dtype = x_ptr.dtype.element_ty
    x = tl.load(x_ptr + at, mask=exists, other=0.0)
    input_gate = tl.load(input_gate_ptr + at, mask=exists, other=0.0).to(tl.float32)
    a_gate = tl.load(a_gate_ptr + at, mask=exists, other=0.0).to(tl.float32)
    a_param = tl.load(a_param_ptr + column, mask=exists, other=0.0).to(tl.float32)
    state = tl.load(state_ptr + at, mask=exists, other=0.0)
    gated = (_sigmoid(input_gate).to(dtype).to(tl.float32) * x.to(tl.float32)).to(dtype)
    rate = -decay_scale * _softplus(a_param)
    log_a = _sigmoid(a_gate).to(dtype).to(tl.float32) * rate
    a = tl.exp(log_a)
    normed = tl.sqrt(-_expm1(2.0 * log_a)) * gated.to(tl.float32)
    new_state = a * state + normed
    if HAS_MASK:
        new_state = tl.where(tl.load(is_token_ptr + row) != 0, new_state, state)
    tl.store(h_ptr + at, new_state.to(dtype), mask=exists)
    tl.store(new_state_ptr + at, new_state, mask=exists)


@triton.jit
def conv_kernel(
    x_ptr,
    state_ptr,
    kernel_ptr,
    bias_ptr,
    is_token_ptr,
    y_ptr,
    new_state_ptr,
    WIDTH: tl.constexpr,
    REACH: tl.constexpr,
    HAS_MASK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Convolves a token: x, y [B, L], states [B, R, L], kernel [R + 1, L], bias [L]."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    exists = column < WIDTH
    dtype = y_ptr.dtype.element_ty
    x = tl.load(x_ptr + row * WIDTH + column, mask=exists, other=0.0).to(dtype)
    is_token = True
    if HAS_MASK:
        is_token = tl.load(is_token_ptr + row) != 0
    total = tl.zeros((BLOCK,), tl.float32)
    before = x
    for r in tl.static_range(REACH):
        at = (row * REACH + r) * WIDTH + column
        recent = tl.load(state_ptr + at, mask=exists, other=0.0).to(dtype)
        tap = tl.load(kernel_ptr + r * WIDTH + column, mask=exists, other=0.0).to(dtype)
        total += (recent.to(tl.float32) * tap.to(tl.float32)).to(dtype).to(tl.float32)
        if r > 0:  # the row moves up by one place, where there is a token
            moved = tl.where(is_token, recent, before)
            tl.store(new_state_ptr + at - WIDTH, moved, mask=exists)
        before = recent
    last = (row * REACH + REACH - 1) * WIDTH + column
    tl.store(new_state_ptr + last, tl.where(is_token, x, before), mask=exists)
    tap = tl.load(kernel_ptr + REACH * WIDTH + column, mask=exists, other=0.0).to(dtype)
    total += (x.to(tl.float32) * tap.to(tl.float32)).to(dtype).to(tl.float32)
    bias = tl.load(bias_ptr + column, mask=exists, other=0.0).to(dtype)
    y = total.to(dtype).to(tl.float32) + bias.to(tl.float32)
    tl.store(y_ptr + row * WIDTH + column, y.to(dtype), mask=exists)


@triton.jit
def rope_kernel(
    x_ptr,
    cos_ptr,
    sin_ptr,
    y_ptr,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Rotates heads: x, y [N, H, K], cos, sin [N, R / 2]."""
    head = tl.program_id(0).to(tl.int64)
    feature = tl.arange(0, BLOCK)
    exists = feature < SIZE
    is_first = feature < HALF
    is_turned = feature < 2 * HALF
    angle = head // HEADS * HALF + tl.where(is_first, feature, feature - HALF)
    cos = tl.load(cos_ptr + angle, mask=is_turned, other=1.0)
    sin = tl.load(sin_ptr + angle, mask=is_turned, other=0.0)
    x = tl.load(x_ptr + head * SIZE + feature, mask=exists, other=0.0).to(tl.float32)
    partner = tl.where(is_first, feature + HALF, feature - HALF)
    other = tl.load(x_ptr + head * SIZE + partner, mask=is_turned, other=0.0).to(tl.float32)
    y = x * cos + tl.where(is_first, -other, other) * sin
    tl.store(y_ptr + head * SIZE + feature, y.to(y_ptr.dtype.element_ty), mask=exists)


@triton.jit
def gated_gelu_kernel(gate_ptr, up_ptr, y_ptr, SIZE, BLOCK: tl.constexpr):
    """Computes gelu(gate) * up, GELU by tanh; all [N]."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = at < SIZE
    dtype = y_ptr.dtype.element_ty
    gate = tl.load(gate_ptr + at, mask=exists, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + at, mask=exists, other=0.0).to(tl.float32)
    inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
    gelu = gate * _sigmoid(2.0 * inner)  # 0.5 * (1 + tanh(z)) is the sigmoid of 2 z
    tl.store(y_ptr + at, (gelu.to(dtype).to(tl.float32) * up).to(dtype), mask=exists)
