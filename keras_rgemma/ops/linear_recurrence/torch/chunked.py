"""Computes the linear recurrence by chunks of time, in operations of PyTorch in float32."""

from typing import Any

import torch
from torch.nn import functional

CHUNK = 32


def _run(
    x: torch.Tensor, a: torch.Tensor, initial_state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Steps through all chunks of C steps at once, then through the N chunks by recursion.

    Within a chunk h starts at zero and the product of a is kept, too, so the state that enters a
    chunk is added afterwards: C + C log_C(T) operations on large tensors, and never an operation
    for each token.
    """
    batch, length, width = x.shape
    if length == 1:
        h_BL = torch.addcmul(x[:, 0], a[:, 0], initial_state)
        return h_BL[:, None], h_BL
    steps = min(CHUNK, length)
    chunks = -(-length // steps)
    padding = chunks * steps - length
    if padding:  # steps that keep the state
        x = functional.pad(x, (0, 0, 0, padding))
        a = functional.pad(a, (0, 0, 0, padding), value=1.0)
    x_BNCL = x.reshape(batch, chunks, steps, width)
    a_BNCL = a.reshape(batch, chunks, steps, width)
    h_BNCL = torch.empty_like(x_BNCL)
    decay_BNCL = torch.empty_like(a_BNCL)
    h_BNCL[:, :, 0] = x_BNCL[:, :, 0]
    decay_BNCL[:, :, 0] = a_BNCL[:, :, 0]
    for i in range(1, steps):
        torch.addcmul(x_BNCL[:, :, i], a_BNCL[:, :, i], h_BNCL[:, :, i - 1], out=h_BNCL[:, :, i])
        torch.mul(decay_BNCL[:, :, i - 1], a_BNCL[:, :, i], out=decay_BNCL[:, :, i])
    if chunks == 1:
        entering_BNL = initial_state[:, None]
    else:
        ends_BNL, _ = _run(h_BNCL[:, :, -1], decay_BNCL[:, :, -1], initial_state)
        entering_BNL = torch.cat([initial_state[:, None], ends_BNL[:, :-1]], dim=1)
    h_BNCL.addcmul_(decay_BNCL, entering_BNL[:, :, None])
    h_BTL = h_BNCL.reshape(batch, chunks * steps, width)
    return h_BTL[:, :length], h_BTL[:, -1]


class _LinearRecurrence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, a: torch.Tensor, initial_state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        h_BTL, last_BL = _run(x, a, initial_state)
        ctx.save_for_backward(a, initial_state, h_BTL)
        return h_BTL, last_BL.clone()

    @staticmethod
    def backward(
        ctx: Any, h_gradient: torch.Tensor, last_gradient: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        a, initial_state, h_BTL = ctx.saved_tensors
        later_a = torch.cat([torch.ones_like(a[:, :1]), a.flip(1)[:, :-1]], dim=1)
        reversed_BTL, _ = _run(h_gradient.flip(1), later_a, last_gradient)
        x_gradient = reversed_BTL.flip(1)
        before_BTL = torch.cat([initial_state[:, None], h_BTL[:, :-1]], dim=1)
        return x_gradient, x_gradient * before_BTL, a[:, 0] * x_gradient[:, 0]


def linear_recurrence(
    x: torch.Tensor, a: torch.Tensor, initial_state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes what `ops.linear_recurrence` does, on any device."""
    x, a = x.float(), a.float()
    if torch.is_grad_enabled():
        return _LinearRecurrence.apply(x, a, initial_state)
    return _run(x, a, initial_state)
