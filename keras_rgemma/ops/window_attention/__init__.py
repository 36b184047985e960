"""Computes local attention, and the ring buffer of keys and values that later queries see."""

from collections.abc import Callable, Sequence

from keras import ops

from keras_rgemma.backend import backend_module, resolve
from keras_rgemma.ops.bounds import at_least
from keras_rgemma.ops.places import Places, places_of
from keras_rgemma.ops.tokens_at import tokens_at
from keras_rgemma.state.records import AttentionState
from keras_rgemma.types import Tensor


def window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    places: Places | Tensor,
    window: int,
    history: Sequence[Tensor] | None = None,
    *,
    implementation: str = "auto",
) -> Tensor:
    """Attends from each token to itself and the `window` tokens before it in its document.

    Griffin (arXiv 2402.19427), section 2.3, with the multi-query attention of section 2.2. A
    query at position p sees the W + 1 keys p - W .. p. Softmax is in float32. Work and
    memory grow with T * W, not with T * T.

    Args:
        query: float [B, T, H, K], rotated.
        key: float [B, T, num_key_value_heads, K], rotated.
        value: float [B, T, num_key_value_heads, K].
        places: `Places` of the tokens, or their positions int32 [B, T], -1 at pads.
        window: int, W.
        history: None, or a pair `(keys, values)` of [B, W, num_key_value_heads, K]: a ring buffer
            with the key of position p in slot p % W. Rows then hold tokens first, pads last.
        implementation: "auto", or the name of one of this backend's implementations: "blocks",
            "sdpa" on PyTorch, and "splash" on JAX for TPUs.

    Returns:
        float [B, T, H, K]; at pads, finite numbers without meaning.

    Raises:
        ValueError: the implementation does not exist on this backend.

    Example:
    ```python
    x = np.ones((1, 3, 1, 2), "float32")
    window_attention(x, x, x, np.array([[0, 1, 2]]), window=1)  # [1, 3, 1, 2]
    ```
    """
    attend = resolve("window_attention", implementation)
    return attend(query, key, value, places_of(places), window, history)


def updated_ring(
    state: AttentionState | None, key: Tensor, value: Tensor, places: Places | Tensor, window: int
) -> AttentionState:
    """Returns the ring buffer after the tokens of a row.

    Args:
        state: `AttentionState` before the row, None for an empty one.
        key, value: float [B, T, num_key_value_heads, K] of the row.
        places: as of `window_attention`.
        window: int, W.

    Returns:
        `AttentionState`. Slot s holds the latest position p with p % W = s.
    """
    places = places_of(places)
    if state is not None and key.shape[1] == 1:
        write = backend_module(__name__).write_slots
        return with_token(state, key, value, places, window, write)
    return _rewritten_ring(state, key, value, places, window)


def with_token(
    state: AttentionState,
    key: Tensor,
    value: Tensor,
    places: Places,
    window: int,
    write: Callable[..., Tensor],
) -> AttentionState:
    """Returns the ring buffer after one token a row.

    Args:
        state, key, value, window: as of `updated_ring`, with T = 1.
        places: `Places` of the tokens.
        write: the function `write_slots` of a backend, or a form of it.
    """
    slot_B = (places.last + places.length - 1) % window  # of the position of the token, at index 0
    return AttentionState(
        write(state.keys, slot_B, key[:, 0], places.is_token),
        write(state.values, slot_B, value[:, 0], places.is_token),
    )


def _rewritten_ring(
    state: AttentionState | None, key: Tensor, value: Tensor, places: Places, window: int
) -> AttentionState:
    """Rewrites each slot that gets a key from the row; other slots stay.

    The index of its key in the row follows from the slot alone.
    """
    last_B, length_B = places.last, places.length
    slots_1W = ops.arange(window, dtype="int32")[None]
    age_BW = (length_B[:, None] - 1 - slots_1W) % window  # 0 for the last token
    index_BW = last_B[:, None] - age_BW
    nearest_BW = at_least(index_BW, 0)
    position_BW = ops.take_along_axis(places.positions, nearest_BW, axis=1)
    in_row_BW = ops.logical_and(index_BW >= 0, position_BW == length_B[:, None] - 1 - age_BW)
    in_row_BW = ops.logical_and(in_row_BW, position_BW >= 0)[:, :, None, None]
    gathered = (tokens_at(x, nearest_BW) for x in (key, value))
    before = (ops.zeros_like(key[:, :1]),) * 2 if state is None else state
    return AttentionState(
        *(
            ops.where(in_row_BW, new, ops.cast(old, new.dtype))
            for new, old in zip(gathered, before, strict=True)
        )
    )
