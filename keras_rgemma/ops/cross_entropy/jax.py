"""Computes the cross-entropy on JAX.

Letters: N chunks, C tokens of each, S shards of the rows of a batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from keras_rgemma.sharding.entries import token_shards


def default_implementation() -> str:
    return "chunked"


def _product(
    left: jax.Array,
    right: jax.Array,
    axes: tuple[Sequence[int], Sequence[int]],
    batch_axes: tuple[Sequence[int], Sequence[int]] = ((), ()),
) -> jax.Array:
    """Computes a matrix product that is summed and returned in float32."""
    return lax.dot_general(left, right, (axes, batch_axes), preferred_element_type="float32")


def _logits(hidden_CD: jax.Array, embeddings_VD: jax.Array, soft_cap: float | None) -> jax.Array:
    logits_CV = _product(hidden_CD, embeddings_VD, ((1,), (1,)))
    return logits_CV if soft_cap is None else soft_cap * jnp.tanh(logits_CV / soft_cap)


def _forward(
    hidden_NCD: jax.Array,
    embeddings_VD: jax.Array,
    labels_NC: jax.Array,
    soft_cap: float | None,
    needs_embedding_gradient: bool,
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, ...]]:
    def chunk(
        hidden_CD: jax.Array, labels_C: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array, jax.Array], jax.Array]:
        logits_CV = _logits(hidden_CD, embeddings_VD, soft_cap)
        log_sum_C = jax.nn.logsumexp(logits_CV, axis=-1)
        chosen_C = jnp.take_along_axis(logits_CV, labels_C[:, None], axis=-1)[:, 0]
        hit_C = jnp.argmax(logits_CV, axis=-1) == labels_C
        return (log_sum_C - chosen_C, hit_C.astype("float32"), log_sum_C), logits_CV

    def step(
        _: None, inputs: tuple[jax.Array, jax.Array]
    ) -> tuple[None, tuple[jax.Array, jax.Array, jax.Array]]:
        return None, chunk(*inputs)[0]

    # The gradient begins with the last chunk, whose logits are at hand.
    results, last_logits_CV = chunk(hidden_NCD[-1], labels_NC[-1])
    results = [x[None] for x in results]
    if len(hidden_NCD) > 1:
        _, before = lax.scan(step, None, (hidden_NCD[:-1], labels_NC[:-1]))
        results = [jnp.concatenate(pair) for pair in zip(before, results, strict=True)]
    loss_NC, hit_NC, log_sum_NC = results
    residuals = hidden_NCD, embeddings_VD, labels_NC, log_sum_NC, last_logits_CV
    return (loss_NC, hit_NC), residuals


def _backward(
    soft_cap: float | None,
    needs_embedding_gradient: bool,
    residuals: tuple[jax.Array, ...],
    gradients: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array, None]:
    hidden_NCD, embeddings_VD, labels_NC, log_sum_NC, last_logits_CV = residuals
    # Devices that share the tokens sum their parts of the gradient once, and not in each chunk.
    shards = token_shards(labels_NC.shape[1])

    def chunk(
        total_SVD: jax.Array, inputs: Sequence[jax.Array], logits_CV: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        hidden_CD, labels_C, log_sum_C, gradient_C = inputs
        is_label_CV = jnp.arange(logits_CV.shape[1]) == labels_C[:, None]
        d_CV = (jnp.exp(logits_CV - log_sum_C[:, None]) - is_label_CV) * gradient_C[:, None]
        if soft_cap is not None:
            d_CV *= 1.0 - (logits_CV / soft_cap) ** 2
        d_CV = d_CV.astype(hidden_CD.dtype)
        if needs_embedding_gradient:
            d_SCV, hidden_SCD = (x.reshape((shards, -1, x.shape[1])) for x in (d_CV, hidden_CD))
            total_SVD += _product(d_SCV, hidden_SCD, ((1,), (1,)), ((0,), (0,)))
        return total_SVD, _product(d_CV, embeddings_VD, ((1,), (0,))).astype(hidden_CD.dtype)

    def step(total_SVD: jax.Array, inputs: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
        return chunk(total_SVD, inputs, _logits(inputs[0], embeddings_VD, soft_cap))

    whole = (shards, *embeddings_VD.shape)
    total_SVD = jnp.zeros(whole if needs_embedding_gradient else (), "float32")
    inputs = hidden_NCD, labels_NC, log_sum_NC, gradients[0]
    total_SVD, d_hidden_CD = chunk(total_SVD, [x[-1] for x in inputs], last_logits_CV)
    d_hidden_NCD = d_hidden_CD[None]
    if len(hidden_NCD) > 1:
        total_SVD, before_NCD = lax.scan(step, total_SVD, tuple(x[:-1] for x in inputs))
        d_hidden_NCD = jnp.concatenate([before_NCD, d_hidden_NCD])
    if needs_embedding_gradient:
        total_VD = jnp.sum(total_SVD, axis=0)
    else:
        total_VD = jnp.zeros(embeddings_VD.shape)
    return d_hidden_NCD, total_VD.astype(embeddings_VD.dtype), None


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _cross_entropy(
    hidden: jax.Array,
    embeddings: jax.Array,
    labels: jax.Array,
    soft_cap: float | None,
    needs_embedding_gradient: bool,
) -> tuple[jax.Array, jax.Array]:
    return _forward(hidden, embeddings, labels, soft_cap, needs_embedding_gradient)[0]


_cross_entropy.defvjp(_forward, _backward)

IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {"chunked": _cross_entropy}
