"""Computes the cross-entropy by its definition, in NumPy: the tests compare backends with it."""

import numpy as np


def cross_entropy(
    hidden: np.ndarray, embeddings: np.ndarray, labels: np.ndarray, soft_cap: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the losses [N] in the dtype of `hidden`, and the hits [N], booleans.

    Arguments as of `keras_rgemma.ops.cross_entropy.cross_entropy`.
    """
    logits_NV = _logits(hidden, embeddings, soft_cap)
    largest_N1 = logits_NV.max(axis=-1, keepdims=True)
    log_sum_N = largest_N1[:, 0] + np.log(np.exp(logits_NV - largest_N1).sum(axis=-1))
    label_N = logits_NV[np.arange(len(labels)), labels]
    return log_sum_N - label_N, logits_NV.argmax(axis=-1) == labels


def cross_entropy_gradient(
    hidden: np.ndarray,
    embeddings: np.ndarray,
    labels: np.ndarray,
    soft_cap: float | None,
    loss_gradient: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the gradients of `hidden` and `embeddings` for the gradient of the losses [N]."""
    logits_NV = _logits(hidden, embeddings, soft_cap)
    shares_NV = np.exp(logits_NV - logits_NV.max(axis=-1, keepdims=True))
    shares_NV /= shares_NV.sum(axis=-1, keepdims=True)
    is_label_NV = np.arange(len(embeddings)) == labels[:, None]
    d_NV = (shares_NV - is_label_NV) * loss_gradient[:, None]
    if soft_cap is not None:
        d_NV *= 1.0 - (logits_NV / soft_cap) ** 2
    return d_NV @ embeddings, d_NV.T @ hidden


def _logits(hidden: np.ndarray, embeddings: np.ndarray, soft_cap: float | None) -> np.ndarray:
    logits_NV = hidden @ embeddings.T
    return logits_NV if soft_cap is None else soft_cap * np.tanh(logits_NV / soft_cap)
