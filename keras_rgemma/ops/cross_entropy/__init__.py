"""Computes the cross-entropy of a language model's head without all of its logits at a time."""

from keras import ops

from keras_rgemma.backend import resolve
from keras_rgemma.sharding.activations import constrain
from keras_rgemma.sharding.entries import row_shards

CHUNK_LOGITS = 2**26  # in memory at a time: 256 MiB in float32


def cross_entropy(
    hidden,
    embeddings,
    labels,
    soft_cap=None,
    *,
    needs_embedding_gradient=True,
    chunk_size=None,
    implementation="auto",
):
    """Computes `-log softmax(logits)[label]` of tokens from their hidden states.

    With `logits = soft_cap * tanh(hidden E^T / soft_cap)`. The logits of one chunk of tokens are
    computed at a time, and for the gradient those of the last chunk are kept and the others are
    computed again: their memory grows with `chunk_size * V`, not with `N * V`. All but the product
    itself, which has the dtype of its inputs on TensorFlow and PyTorch, is computed in float32.

    Args:
        hidden: float [N, D], final hidden states.
        embeddings: float [V, D], E, in the dtype of `hidden`.
        labels: int [N].
        soft_cap: float, or None for logits as they are.
        needs_embedding_gradient: bool, whether a gradient with respect to `embeddings` is needed;
            False saves the time and memory of that gradient.
        chunk_size: int, the tokens of a chunk; None for as many as have 2^26 logits.
        implementation: "auto" for the choice of `keras_rgemma.implementation`, or the name of one
            of this backend's implementations ("chunked" on each).

    Returns:
        A pair of float32 arrays [N]: the losses, and the hits, 1 where the label has the largest
        logit. Hits have no gradient.

    Raises:
        ValueError: the backend, or the implementation on this backend, does not exist.

    Example:
    ```python
    losses, hits = cross_entropy(np.ones((3, 2)), np.eye(5, 2), labels=np.array([0, 1, 4]))
    ```
    """
    function = resolve("cross_entropy", implementation)
    hidden, embeddings = (ops.convert_to_tensor(x) for x in (hidden, embeddings))
    count = ops.shape(hidden)[0]
    hidden, labels = in_chunks(hidden, labels, embeddings.shape[0], chunk_size)
    losses, hits = function(hidden, embeddings, labels, soft_cap, needs_embedding_gradient)
    return tuple(of_tokens(x, count) for x in (losses, hits))


def in_chunks(hidden, labels, vocabulary_size, chunk_size=None):
    """Cuts tokens into chunks of one size, with pads of zeros behind the last.

    Where devices share the rows of a batch, each chunk has as many tokens of each of them, so that
    all compute at a time and no token moves.

    Args:
        hidden: float [N, D].
        labels: int [N].
        vocabulary_size: int, V.
        chunk_size: int, the most tokens of a chunk; None for as many as have 2^26 logits.

    Returns:
        A pair of float [chunks, C, D] and int32 [chunks, C].
    """
    count, width = ops.shape(hidden)
    shards = row_shards(count)
    if chunk_size is None:
        chunk_size = max(1, CHUNK_LOGITS // vocabulary_size)
    count //= shards
    chunks = -(-count // max(1, chunk_size // shards))
    size = -(-count // chunks)  # all of one size, nearly without pads
    pads = chunks * size - count

    def cut(x_N, *shape):
        x_SN = constrain(ops.reshape(x_N, (shards, count, *shape)), "BTD"[: 2 + len(shape)])
        x_SN = ops.concatenate([x_SN, ops.zeros((shards, pads, *shape), x_SN.dtype)], axis=1)
        if shards == 1:  # nothing to swap, where TensorFlow would warn of integers
            return ops.reshape(x_SN, (chunks, size, *shape))
        x_SNC = ops.reshape(x_SN, (shards, chunks, size, *shape))
        return ops.reshape(ops.swapaxes(x_SNC, 0, 1), (chunks, shards * size, *shape))

    return cut(hidden, width), cut(ops.cast(labels, "int32"))


def of_tokens(x, count):
    """Undoes `in_chunks`: numbers of tokens [chunks, C] in the order of the tokens, [N].

    Args:
        x: array [chunks, C].
        count: int, N.
    """
    shards = row_shards(count)
    if shards == 1:
        return ops.reshape(x, (-1,))[:count]
    chunks, size = x.shape
    x_SNC = ops.swapaxes(ops.reshape(x, (chunks, shards, size // shards)), 0, 1)
    x_SN = constrain(ops.reshape(x_SNC, (shards, -1))[:, : count // shards], "BT")
    return ops.reshape(x_SN, (-1,))
