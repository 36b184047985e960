"""Bounds logits on PyTorch, in place where no gradient is recorded."""

from collections.abc import Callable
from typing import Any

import torch

from keras_rgemma.ops.soft_cap import plain


def default_implementation() -> str:
    return "in_place"


def soft_cap(logits: torch.Tensor, cap: float) -> torch.Tensor:
    """Computes what the package's function does."""
    if torch.is_grad_enabled() and logits.requires_grad:
        return plain.soft_cap(logits, cap)
    # All logits of a prompt take hundreds of MB: a new array takes longer than a step in it.
    return logits.div_(cap).tanh_().mul_(cap)


IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {"in_place": soft_cap, "keras": plain.soft_cap}
