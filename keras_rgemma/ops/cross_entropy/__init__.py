"""Computes the cross-entropy of a language model's head without all of its logits at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

from keras import ops

from keras_rgemma.backend import resolve
from keras_rgemma.sharding.activations import constrain, inputs_of_maps
from keras_rgemma.sharding.entries import row_shards, time_shards
from keras_rgemma.types import Tensor

CHUNK_LOGITS = 2**26  # in memory at a time: 256 MiB in float32


def cross_entropy(
    hidden: Tensor,
    embeddings: Tensor,
    labels: Tensor,
    soft_cap: float | None = None,
    *,
    needs_embedding_gradient: bool = True,
    chunk_size: int | None = None,
    implementation: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Computes `-log softmax(logits)[label]` of tokens from their hidden states.

    With `logits = soft_cap * tanh(hidden E^T / soft_cap)`. The logits of one chunk of tokens are
    computed at a time, and for the gradient those of the last chunk are kept and the others are
    computed again: their memory grows with `chunk_size * V`, not with `N * V`. All but the product
    itself, which has the dtype of its inputs on TensorFlow and PyTorch, is computed in float32.

    Args:
        hidden: float [N, D] or [B, T, D], final hidden states.
        embeddings: float [V, D], E, in the dtype of `hidden`.
        labels: int [N] or [B, T].
        soft_cap: float, or None for logits as they are.
        needs_embedding_gradient: bool, whether a gradient with respect to `embeddings` is needed;
            False saves the time and memory of that gradient.
        chunk_size: int, the tokens of a chunk; None for as many as have 2^26 logits.
        implementation: "auto" for the choice of `keras_rgemma.implementation`, or the name of one
            of this backend's implementations ("chunked" on each).

    Returns:
        A pair of float32 arrays [N] or [B, T]: the losses, and the hits, 1 where the label has the
        largest logit. Hits have no gradient.

    Raises:
        ValueError: the backend, or the implementation on this backend, does not exist.

    Example:
    ```python
    losses, hits = cross_entropy(np.ones((3, 2)), np.eye(5, 2), labels=np.array([0, 1, 4]))
    ```
    """
    function = resolve("cross_entropy", implementation)
    hidden, embeddings = (ops.convert_to_tensor(x) for x in (hidden, embeddings))
    hidden = inputs_of_maps(hidden)
    shape = ops.shape(hidden)[:-1]
    hidden, labels = in_chunks(hidden, labels, embeddings.shape[0], chunk_size)
    losses, hits = function(hidden, embeddings, labels, soft_cap, needs_embedding_gradient)
    return of_tokens(losses, shape), of_tokens(hits, shape)


def in_chunks(
    hidden: Tensor, labels: Tensor, vocabulary_size: int, chunk_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Cuts tokens into chunks of one size, with pads of zeros behind the last.

    Where devices share the rows of a batch, or the tokens of a row, each chunk has as many tokens
    of each of them, so that all compute at a time and no token moves.

    Args:
        hidden: float [N, D] or [B, T, D].
        labels: int [N] or [B, T].
        vocabulary_size: int, V.
        chunk_size: int, the most tokens of a chunk; None for as many as have 2^26 logits.

    Returns:
        A pair of float [chunks, C, D] and int32 [chunks, C].
    """
    *shape, width = ops.shape(hidden)
    rows, parts = _shards(shape)
    shards = rows * parts
    if chunk_size is None:
        chunk_size = max(1, CHUNK_LOGITS // vocabulary_size)
    count = math.prod(shape) // shards
    chunks = -(-count // max(1, chunk_size // shards))
    size = -(-count // chunks)  # all of one size, nearly without pads
    pads = chunks * size - count

    def cut(x: Tensor, *width: int) -> Tensor:
        if shards == 1:  # nothing to swap, where TensorFlow would warn of integers
            x_N = ops.reshape(x, (count, *width))
            x_N = ops.concatenate([x_N, ops.zeros((pads, *width), x.dtype)], axis=0)
            return ops.reshape(x_N, (chunks, size, *width))
        if parts > 1:  # the tokens of a device stand together
            x = ops.reshape(x, (rows, shape[0] // rows, parts, shape[1] // parts, *width))
            x = ops.swapaxes(x, 1, 2)
        x_BPN = constrain(ops.reshape(x, (rows, parts, count, *width)), "BPCD"[: 3 + len(width)])
        x_BPN = ops.pad(x_BPN, [(0, 0), (0, 0), (0, pads), *[(0, 0)] * len(width)])
        x_BPNC = ops.reshape(x_BPN, (rows, parts, chunks, size, *width))
        return ops.reshape(ops.moveaxis(x_BPNC, 2, 0), (chunks, shards * size, *width))

    return cut(hidden, width), cut(ops.cast(labels, "int32"))


def of_tokens(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Undoes `in_chunks`: numbers of tokens [chunks, C] in the order of the tokens.

    Args:
        x: array [chunks, C].
        shape: tuple of ints, (N,) or (B, T).
    """
    rows, parts = _shards(shape)
    count = math.prod(shape)
    if rows * parts == 1:
        return ops.reshape(ops.reshape(x, (-1,))[:count], shape)
    count //= rows * parts
    x_BPNC = ops.moveaxis(ops.reshape(x, (x.shape[0], rows, parts, -1)), 0, 2)
    x_BPN = constrain(ops.reshape(x_BPNC, (rows, parts, -1))[:, :, :count], "BPC")
    if parts > 1:
        x = ops.reshape(x_BPN, (rows, parts, shape[0] // rows, shape[1] // parts))
        return constrain(ops.reshape(ops.swapaxes(x, 1, 2), shape), "BT")
    return ops.reshape(x_BPN, shape)


def _shards(shape: Sequence[int]) -> tuple[int, int]:
    """Returns into how many parts devices divide the rows of a batch, and each row: two ints."""
    if len(shape) == 2 and time_shards(shape[1]) > 1:
        return row_shards(shape[0]), time_shards(shape[1])
    return row_shards(math.prod(shape)), 1
