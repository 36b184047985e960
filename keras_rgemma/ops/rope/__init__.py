"""Computes rotary position embedding (RoPE) with angles that are exact at any position."""

import functools
import math

import numpy as np
from keras import ops

from keras_rgemma.backend import backend_module, resolve
from keras_rgemma.types import Tensor

_DIGIT = 2048  # positions are split in base 2048: three digits hold any int32


def rotate(
    x: Tensor,
    positions: Tensor,
    max_wavelength: float,
    rotated_size: int,
    *,
    implementation: str = "auto",
) -> Tensor:
    """Rotates the first `rotated_size` features of each head by the token's position.

    RoFormer (arXiv 2104.09864), section 3.2.2; halves are split, not interleaved, and the other
    features pass unchanged (RecurrentGemma rotates half of a head).

    Args:
        x: float [B, T, H, K], queries or keys.
        positions: int32 [B, T], not negative.
        max_wavelength: float, the base of the wavelengths.
        rotated_size: int, even, at most K.
        implementation: as of `apply_rotation`.

    Returns:
        As `x`, in its dtype; the rotation itself is computed in float32.
    """
    angles = rotation(positions, max_wavelength, rotated_size)
    return apply_rotation(x, angles, implementation=implementation)


def rotation(positions: Tensor, max_wavelength: float, rotated_size: int) -> tuple[Tensor, Tensor]:
    """Computes the cosines and sines of the angles of RoPE.

    Args:
        positions: int32 [B, T], not negative.
        max_wavelength: float, the base of the wavelengths.
        rotated_size: int, even.

    Returns:
        A pair of float32 arrays [B, T, 1, rotated_size / 2]. The angle of feature i at position p
        is `p * max_wavelength^(-2 i / rotated_size)`.
    """
    angle = _angles(positions, max_wavelength, rotated_size // 2)[:, :, None, :]
    return ops.cos(angle), ops.sin(angle)


def apply_rotation(
    x: Tensor, rotation: tuple[Tensor, Tensor], *, implementation: str = "auto"
) -> Tensor:
    """Rotates the first features of each head by given angles.

    Args:
        x: float [B, T, H, K].
        rotation: pair of float32 [B, T, 1, R / 2], cosines and sines, R at most K.
        implementation: "auto", or the name of one of this backend's implementations ("split").

    Returns:
        As `x`, in its dtype. Features from R on are unchanged.
    """
    if rotation[0].shape[-1] == 0:
        return x
    return resolve("rope", implementation)(x, *rotation)


def _angles(positions: Tensor, max_wavelength: float, half: int) -> Tensor:
    """Computes `position * max_wavelength^(-i / half)` modulo a turn, float32 [B, T, half].

    A float32 product of position and frequency is wrong by 0.06 rad at a million tokens. Here a
    turn is 2^32 units and the products are int32, whose overflow is the reduction modulo a turn;
    a frequency for each base-2048 digit of the position keeps the error under 5e-6 rad at every
    position.
    """
    phase, rest = 0, positions[:, :, None]
    constant = backend_module(__name__).constant
    for digit_value, units in _units(max_wavelength, half):
        digit = rest % _DIGIT if digit_value < _DIGIT**2 else rest
        rest = rest // _DIGIT
        phase = phase + digit * constant(units, positions)
    return ops.cast(phase, "float32") * (2 * math.pi / 2**32)


@functools.cache
def _units(max_wavelength: float, half: int) -> list[tuple[int, np.ndarray]]:
    """Lists pairs of a digit's value and the units that it turns each feature by, int32 [half]."""
    turns = max_wavelength ** (-np.arange(half, dtype="float64") / half) / (2 * math.pi)
    units = {value: turns * value % 1.0 * 2.0**32 for value in (1, _DIGIT, _DIGIT**2)}
    return [
        (value, np.rint(x).astype("int64").astype("uint32").view("int32"))
        for value, x in units.items()
    ]
