"""Computes the cross-entropy on JAX. Letters: N chunks, C tokens of each."""

import functools

import jax
import jax.numpy as jnp
from jax import lax


def default_implementation():
    return "chunked"


def _product(left, right, axes):
    """Computes a matrix product that is summed and returned in float32."""
    return lax.dot_general(left, right, (axes, ((), ())), preferred_element_type="float32")


def _logits(hidden_CD, embeddings_VD, soft_cap):
    logits_CV = _product(hidden_CD, embeddings_VD, ((1,), (1,)))
    return logits_CV if soft_cap is None else soft_cap * jnp.tanh(logits_CV / soft_cap)


def _forward(hidden_NCD, embeddings_VD, labels_NC, soft_cap, needs_embedding_gradient):
    def chunk(_, inputs):
        hidden_CD, labels_C = inputs
        logits_CV = _logits(hidden_CD, embeddings_VD, soft_cap)
        log_sum_C = jax.nn.logsumexp(logits_CV, axis=-1)
        chosen_C = jnp.take_along_axis(logits_CV, labels_C[:, None], axis=-1)[:, 0]
        hit_C = jnp.argmax(logits_CV, axis=-1) == labels_C
        return None, (log_sum_C - chosen_C, hit_C.astype("float32"), log_sum_C)

    _, (loss_NC, hit_NC, log_sum_NC) = lax.scan(chunk, None, (hidden_NCD, labels_NC))
    return (loss_NC, hit_NC), (hidden_NCD, embeddings_VD, labels_NC, log_sum_NC)


def _backward(soft_cap, needs_embedding_gradient, residuals, gradients):
    hidden_NCD, embeddings_VD, labels_NC, log_sum_NC = residuals

    def chunk(total_VD, inputs):
        hidden_CD, labels_C, log_sum_C, gradient_C = inputs
        logits_CV = _logits(hidden_CD, embeddings_VD, soft_cap)
        is_label_CV = jnp.arange(logits_CV.shape[1]) == labels_C[:, None]
        d_CV = (jnp.exp(logits_CV - log_sum_C[:, None]) - is_label_CV) * gradient_C[:, None]
        if soft_cap is not None:
            d_CV *= 1.0 - (logits_CV / soft_cap) ** 2
        d_CV = d_CV.astype(hidden_CD.dtype)
        if needs_embedding_gradient:
            total_VD += _product(d_CV, hidden_CD, ((0,), (0,)))
        return total_VD, _product(d_CV, embeddings_VD, ((1,), (0,))).astype(hidden_CD.dtype)

    total_VD = jnp.zeros(embeddings_VD.shape if needs_embedding_gradient else (), "float32")
    inputs = (hidden_NCD, labels_NC, log_sum_NC, gradients[0])
    total_VD, d_hidden_NCD = lax.scan(chunk, total_VD, inputs)
    if not needs_embedding_gradient:
        total_VD = jnp.zeros(embeddings_VD.shape)
    return d_hidden_NCD, total_VD.astype(embeddings_VD.dtype), None


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _cross_entropy(hidden, embeddings, labels, soft_cap, needs_embedding_gradient):
    return _forward(hidden, embeddings, labels, soft_cap, needs_embedding_gradient)[0]


_cross_entropy.defvjp(_forward, _backward)

IMPLEMENTATIONS = {"chunked": _cross_entropy}
