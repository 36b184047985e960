"""Derives arrays from the positions of tokens, once for all layers."""

from typing import Any, NamedTuple

from keras import ops

from keras_rgemma.ops.bounds import at_least
from keras_rgemma.ops.documents import last_token
from keras_rgemma.ops.rope import rotation as rotation_of
from keras_rgemma.sharding.activations import constrain
from keras_rgemma.types import Tensor


class Places(NamedTuple):
    """Holds the positions of tokens and the arrays that layers derive from the positions.

    A layer that is called with positions alone makes this record itself.

    Attributes:
        positions: int32 [B, T], the place of each token in its document, -1 at pads.
        is_token: bool [B, T], False at pads; None if there is no pad.
        is_first: bool [B, T], whether a token is the first of its document; None if no token is.
        last: int32 [B], the index of the last token in the row, -1 for a row of pads.
        length: int32 [B], the number of tokens of the last document up to that token.
        rotation: pair of float32 [B, T, 1, rotated_size / 2], the cosines and sines of RoPE's
            angles; () if no layer rotates.
    """

    positions: Tensor
    is_token: Tensor | None
    is_first: Tensor | None
    last: Tensor
    length: Tensor
    rotation: tuple[Tensor, Tensor] | tuple[()] = ()


def places_of(
    positions: Tensor | tuple[Any, ...] | list[Any], rope: tuple[float, int] | None = None
) -> Places:
    """Derives the `Places` of tokens from their positions.

    Args:
        positions: int32 [B, T], the place of each token in its document, -1 at pads; or `Places`,
            which are returned with a rotation.
        rope: None, or a pair of `max_wavelength`, float, and `rotated_size`, int.
    """
    if isinstance(positions, tuple | list):
        places = Places(*positions)  # a saved model returns a plain tuple
    else:
        last, length = last_token(positions)
        positions = constrain(positions, "BT")
        places = Places(positions, positions >= 0, positions == 0, last, length)
    if rope is None or places.rotation:
        return places
    return places._replace(rotation=rotation_of(at_least(places.positions, 0), *rope))


def next_places(
    num_tokens: Tensor,
    is_token: Tensor | None = None,
    has_begun: bool = False,
    rope: tuple[float, int] | None = None,
) -> Places:
    """Derives the `Places` of one token a row that follows `num_tokens` earlier ones.

    Args:
        num_tokens: int32 [B].
        is_token: bool [B], False for rows without a token; None if each row has one.
        has_begun: bool, whether every row is known to have consumed a token already.
        rope: as of `places_of`.

    Returns:
        `Places` with T = 1.
    """
    zeros = ops.zeros_like(num_tokens)
    last, length = zeros, num_tokens + 1
    if is_token is not None:
        last, length = ops.cast(is_token, "int32") - 1, ops.where(is_token, length, zeros)
        is_token = is_token[:, None]
    positions = (length - 1)[:, None]
    is_first = None if has_begun else positions == 0
    # A row without a token may be turned by any angle.
    rotation = () if rope is None else rotation_of(num_tokens[:, None], *rope)
    return Places(positions, is_token, is_first, last, length, rotation)
