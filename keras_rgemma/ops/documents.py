"""Derives the positions of tokens in their documents from the padding mask.

One array tells every layer about pads and documents: `positions` int32 [B, T], the place of a token
in its document, counted from 0, and -1 at a pad. A document begins where the position is 0, and a
token sees as many tokens to its left as its position says.
"""

from keras import ops

from keras_rgemma.ops.bounds import at_least
from keras_rgemma.types import Tensor


def document_positions(padding_mask: Tensor) -> Tensor:
    """Computes the positions of a row's tokens in their documents.

    A document is a run of equal positive numbers in the mask; at its first token the mask differs
    from the left neighbour.

    Args:
        padding_mask: int or bool [B, T], 0 at pads.

    Returns:
        int32 [B, T], -1 at pads.

    Example:
    ```python
    document_positions(np.array([[0, 1, 1, 2, 2, 2, 0]]))  # [[-1, 0, 1, 0, 1, 2, -1]]
    ```
    """
    mask_BT = ops.cast(padding_mask, "int32")
    left_BT = ops.pad(mask_BT, ((0, 0), (1, 0)))[:, :-1]
    first_BT = ops.logical_and(mask_BT > 0, mask_BT != left_BT)
    index_BT = _indices(mask_BT)
    # The start of the n-th document is the n-th smallest index among first tokens.
    never = ops.full_like(index_BT, 2**31 - 1)
    starts_BT = ops.sort(ops.where(first_BT, index_BT, never), axis=1)
    document_BT = ops.cumsum(ops.cast(first_BT, "int32"), axis=1)
    nearest_BT = at_least(ops.cast(document_BT, "int32") - 1, 0)
    start_BT = ops.take_along_axis(starts_BT, nearest_BT, axis=1)
    return ops.where(mask_BT > 0, index_BT - start_BT, ops.full_like(index_BT, -1))


def continued_positions(padding_mask: Tensor, num_tokens: Tensor) -> Tensor:
    """Computes the positions of tokens that follow `num_tokens` tokens of the same document.

    Args:
        padding_mask: int or bool [B, T], tokens first, then pads.
        num_tokens: int32 [B].

    Returns:
        int32 [B, T], -1 at pads.
    """
    mask_BT = ops.cast(padding_mask, "int32")
    index_BT = _indices(mask_BT) + num_tokens[:, None]
    return ops.where(mask_BT > 0, index_BT, ops.full_like(index_BT, -1))


def last_token(positions: Tensor) -> tuple[Tensor, Tensor]:
    """Finds the last token of each row, and the length of its document up to that token.

    Args:
        positions: int32 [B, T].

    Returns:
        A pair of int32 [B]: the index of the last token in the row, -1 for a row of pads; and the
        number of tokens of its document up to that token, 0 for a row of pads.
    """
    index_BT = _indices(positions)
    index_BT = ops.where(positions >= 0, index_BT, ops.full_like(index_BT, -1))
    last_B = ops.max(index_BT, axis=1)
    nearest_B1 = at_least(last_B, 0)[:, None]
    position_B = ops.take_along_axis(positions, nearest_B1, axis=1)[:, 0]
    return last_B, ops.where(last_B >= 0, position_B + 1, ops.zeros_like(last_B))


def _indices(x_BT: Tensor) -> Tensor:
    """Computes the index of each token in its row, int32 [B, T]."""
    return ops.cumsum(ops.ones_like(x_BT, dtype="int32"), axis=1) - 1
