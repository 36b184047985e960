"""Computes RoPE on PyTorch in few operations: their number bounds decoding on a CPU."""

import torch


def default_implementation():
    return "split"


def rotate(x, cos, sin):
    """Rotates features [0, R) of x [B, T, H, K]; cos and sin are float32 [B, T, 1, R / 2]."""
    half = cos.shape[-1]
    first, second = x[..., :half].float(), x[..., half : 2 * half].float()
    turned = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat([part.to(x.dtype) for part in turned] + [x[..., 2 * half :]], dim=-1)


IMPLEMENTATIONS = {"split": rotate}
