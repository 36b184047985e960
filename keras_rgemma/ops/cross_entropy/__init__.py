"""Computes the cross-entropy of a language model's head without all of its logits at a time."""

from keras import ops

from keras_rgemma.backend import resolve

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
    computed at a time, and again for the gradient: their memory grows with `chunk_size * V`, not
    with `N * V`. All but the product itself, which has the dtype of its inputs on TensorFlow and
    PyTorch, is computed in float32.

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
    return tuple(ops.reshape(x, (-1,))[:count] for x in (losses, hits))


def in_chunks(hidden, labels, vocabulary_size, chunk_size=None):
    """Cuts tokens into chunks of one size, with pads of zeros behind the last.

    Args:
        hidden: float [N, D].
        labels: int [N].
        vocabulary_size: int, V.
        chunk_size: int, the most tokens of a chunk; None for as many as have 2^26 logits.

    Returns:
        A pair of float [chunks, C, D] and int32 [chunks, C].
    """
    count, width = ops.shape(hidden)
    if chunk_size is None:
        chunk_size = max(1, CHUNK_LOGITS // vocabulary_size)
    chunks = -(-count // chunk_size)
    size = -(-count // chunks)  # all of one size, nearly without pads
    pads = chunks * size - count
    hidden = ops.concatenate([hidden, ops.zeros((pads, width), hidden.dtype)])
    labels = ops.concatenate([ops.cast(labels, "int32"), ops.zeros((pads,), "int32")])
    return ops.reshape(hidden, (chunks, size, width)), ops.reshape(labels, (chunks, size))
