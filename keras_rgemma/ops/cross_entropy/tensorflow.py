"""Computes the cross-entropy on TensorFlow. Letters: N chunks, C tokens of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf


def default_implementation() -> str:
    return "chunked"


def _logits(hidden_CD: tf.Tensor, embeddings_VD: tf.Tensor, soft_cap: float | None) -> tf.Tensor:
    logits_CV = tf.cast(tf.matmul(hidden_CD, embeddings_VD, transpose_b=True), "float32")
    return logits_CV if soft_cap is None else soft_cap * tf.tanh(logits_CV / soft_cap)


def _loop(
    function: Callable[..., Any],
    before: tf.Tensor,
    carry: tf.Tensor,
    last: list[tf.Tensor],
    shapes: Sequence[tf.TensorShape],
) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """Runs `carry, outputs = function(i, carry)` for each chunk before the last one.

    Args:
        function: of an int32 tensor and of what it returns first.
        before: int32 tensor, the number of these chunks, which may be 0.
        carry: tensor.
        last: list of tensors, the outputs of the last chunk.
        shapes: list of the static shapes of outputs.

    Returns:
        The last carry, and the outputs of all chunks, stacked.
    """
    arrays = [
        tf.TensorArray(x.dtype, size=before + 1, element_shape=shape)
        for x, shape in zip(last, shapes, strict=True)
    ]

    def step(
        i: tf.Tensor, carry: tf.Tensor, arrays: Sequence[tf.TensorArray]
    ) -> tuple[tf.Tensor, tf.Tensor, list[tf.TensorArray]]:
        carry, outputs = function(i, carry)
        arrays = [array.write(i, x) for array, x in zip(arrays, outputs, strict=True)]
        return i + 1, carry, arrays

    _, carry, arrays = tf.while_loop(
        lambda i, *_: i < before,
        step,
        (tf.constant(0), carry, arrays),
        maximum_iterations=before,
        parallel_iterations=1,  # several would need the logits of several chunks at a time
    )
    # TensorFlow cannot stack nothing, where it does not know the number of tokens.
    return carry, [array.write(before, x).stack() for array, x in zip(arrays, last, strict=True)]


def _cross_entropy(
    hidden: tf.Tensor,
    embeddings: tf.Tensor,
    labels: tf.Tensor,
    soft_cap: float | None,
    needs_embedding_gradient: bool,
) -> tuple[tf.Tensor, tf.Tensor]:
    before = tf.shape(hidden)[0] - 1  # the last chunk
    per_token, per_feature = hidden.shape[1:2], hidden.shape[1:]

    def chunk_losses(
        i: tf.Tensor | int, logits_CV: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        log_sum_C = tf.reduce_logsumexp(logits_CV, axis=-1)
        chosen_C = tf.gather(logits_CV, labels[i], axis=1, batch_dims=1)
        hit_C = tf.argmax(logits_CV, axis=-1, output_type="int32") == labels[i]
        return log_sum_C - chosen_C, tf.cast(hit_C, "float32"), log_sum_C

    @tf.custom_gradient
    def run(
        hidden: tf.Tensor, embeddings: tf.Tensor
    ) -> tuple[tuple[tf.Tensor, tf.Tensor], Callable[..., Any]]:
        def losses(
            i: tf.Tensor, carry: tf.Tensor
        ) -> tuple[tf.Tensor, tuple[tf.Tensor, tf.Tensor, tf.Tensor]]:
            return carry, chunk_losses(i, _logits(hidden[i], embeddings, soft_cap))

        # The gradient begins with the last chunk, whose logits are at hand.
        last_logits_CV = _logits(hidden[-1], embeddings, soft_cap)
        of_last = chunk_losses(-1, last_logits_CV)
        _, outputs = _loop(losses, before, tf.constant(0), of_last, [per_token] * 3)
        loss_NC, hit_NC, log_sum_NC = outputs

        def gradient(
            loss_gradient_NC: tf.Tensor, _: tf.Tensor
        ) -> tuple[tf.Tensor, tf.Tensor | None]:
            def chunk(
                i: tf.Tensor | int, total_VD: tf.Tensor, logits_CV: tf.Tensor
            ) -> tuple[tf.Tensor, tuple[tf.Tensor]]:
                d_CV = tf.exp(logits_CV - log_sum_NC[i][:, None])
                d_CV -= tf.one_hot(labels[i], tf.shape(logits_CV)[1])
                d_CV *= loss_gradient_NC[i][:, None]
                if soft_cap is not None:
                    d_CV *= 1.0 - (logits_CV / soft_cap) ** 2
                d_CV = tf.cast(d_CV, hidden.dtype)
                if needs_embedding_gradient:
                    product_VD = tf.matmul(d_CV, hidden[i], transpose_a=True)
                    total_VD += tf.cast(product_VD, "float32")
                return total_VD, (tf.matmul(d_CV, embeddings),)

            def step(i: tf.Tensor, total_VD: tf.Tensor) -> tuple[tf.Tensor, tuple[tf.Tensor]]:
                return chunk(i, total_VD, _logits(hidden[i], embeddings, soft_cap))

            total_VD = tf.zeros(embeddings.shape if needs_embedding_gradient else ())
            total_VD, of_last = chunk(-1, total_VD, last_logits_CV)
            total_VD, (d_hidden,) = _loop(step, before, total_VD, of_last, [per_feature])
            return d_hidden, tf.cast(
                total_VD, embeddings.dtype
            ) if needs_embedding_gradient else None

        return (loss_NC, hit_NC), gradient

    return run(hidden, embeddings)


IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {"chunked": _cross_entropy}
