"""Rotary position embedding with angles that stay exact at any position."""

import math

import numpy as np
from keras import ops

_DIGIT = 2048  # positions are split in base 2048: three digits hold any int32


def rotate(x, positions, max_wavelength, rotated_size):
    """Rotates the first `rotated_size` features of each head by its token's position.

    RoFormer (arXiv 2104.09864), section 3.2.2; halves are split, not interleaved, and the other
    features pass unchanged (RecurrentGemma rotates half of a head).

    Args:
        x: float [B, T, H, K], queries or keys.
        positions: int32 [B, T], not negative.
        max_wavelength: float, the base of the wavelengths.
        rotated_size: int, even, at most K.

    Returns:
        As `x`, in its dtype; the rotation itself is done in float32.
    """
    if rotated_size == 0:
        return x
    half = rotated_size // 2
    angle = _angles(positions, max_wavelength, half)[:, :, None, :]
    cos, sin = ops.cos(angle), ops.sin(angle)
    first = ops.cast(x[..., :half], "float32")
    second = ops.cast(x[..., half:rotated_size], "float32")
    turned = ops.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return ops.concatenate([ops.cast(turned, x.dtype), x[..., rotated_size:]], axis=-1)


def _angles(positions, max_wavelength, half):
    """`position * max_wavelength^(-i / half)` modulo a turn, float32 [B, T, half].

    A float32 product of position and frequency is wrong by 0.06 rad at a million tokens. Here a
    turn is 2^32 units and the products are int32, whose overflow is the reduction modulo a turn;
    a frequency for each base-2048 digit of the position keeps the error under 5e-6 rad at every
    position.
    """
    turns = max_wavelength ** (-np.arange(half, dtype="float64") / half) / (2 * math.pi)
    phase, rest = 0, positions[:, :, None]
    for place in (1, _DIGIT, _DIGIT**2):
        digit = rest % _DIGIT if place < _DIGIT**2 else rest
        rest = rest // _DIGIT
        units = np.rint(turns * place % 1.0 * 2.0**32).astype("int64")
        units = units.astype("uint32").view("int32")
        phase = phase + digit * ops.convert_to_tensor(units, "int32")
    return ops.cast(phase, "float32") * (2 * math.pi / 2**32)
