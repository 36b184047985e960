"""Bounds logits on PyTorch, in place where no gradient is recorded."""

import torch


def soft_cap(logits, cap):
    """Computes what the package's function does."""
    if torch.is_grad_enabled() and logits.requires_grad:
        return torch.tanh(logits / cap) * cap
    # All logits of a prompt take hundreds of MB: a new array takes longer than a step in it.
    return logits.div_(cap).tanh_().mul_(cap)
