"""Computes the linear recurrence on TensorFlow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

CHUNK = 16  # a graph of longer ones takes longer to make, and is not faster


def default_implementation() -> str:
    return "chunked"


def _run(x: tf.Tensor, a: tf.Tensor, initial_state: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Steps through all chunks of C steps at once, then carries the state over the N chunks.

    Within a chunk h starts at zero and the product of a is kept, too, so the state that enters a
    chunk is added afterwards. Lengths may be unknown while the graph is built.
    """
    length, width = x.shape[1], x.shape[2]
    if length == 1:
        h_BL = a[:, 0] * initial_state + x[:, 0]
        return h_BL[:, None], h_BL
    steps = CHUNK if length is None else min(CHUNK, length)
    actual = tf.shape(x)[1] if length is None else length
    batch = x.shape[0] if x.shape[0] is not None else tf.shape(x)[0]
    chunks = -(-actual // steps)
    padding = [[0, 0], [0, chunks * steps - actual], [0, 0]]
    shape = (batch, chunks, steps, width)
    x_steps = tf.unstack(tf.reshape(tf.pad(x, padding), shape), axis=2)
    a_steps = tf.unstack(tf.reshape(tf.pad(a, padding, constant_values=1.0), shape), axis=2)
    h_steps, decay_steps = [x_steps[0]], [a_steps[0]]
    for x_BNL, a_BNL in zip(x_steps[1:], a_steps[1:], strict=True):
        h_steps.append(a_BNL * h_steps[-1] + x_BNL)
        decay_steps.append(a_BNL * decay_steps[-1])
    if length is not None and length <= CHUNK:
        entering_BNL = initial_state[:, None]
    else:
        entering_BNL = _entering_states(h_steps[-1], decay_steps[-1], initial_state)
    h_BNCL = tf.stack(h_steps, axis=2)
    h_BNCL += tf.stack(decay_steps, axis=2) * entering_BNL[:, :, None]
    h_BTL = tf.reshape(h_BNCL, (batch, chunks * steps, width))
    return h_BTL[:, :actual], h_BTL[:, -1]


def _entering_states(
    ends_BNL: tf.Tensor, decays_BNL: tf.Tensor, initial_state: tf.Tensor
) -> tf.Tensor:
    """Computes the state that enters each chunk from the ends and decays of the chunks."""
    chunks = tf.shape(ends_BNL)[1] if ends_BNL.shape[1] is None else ends_BNL.shape[1]
    ends_NBL, decays_NBL = (tf.transpose(x, (1, 0, 2)) for x in (ends_BNL, decays_BNL))
    entering = tf.TensorArray("float32", size=chunks, element_shape=initial_state.shape)

    def step(
        i: tf.Tensor, state_BL: tf.Tensor, entering: tf.TensorArray
    ) -> tuple[tf.Tensor, tf.Tensor, tf.TensorArray]:
        entering = entering.write(i, state_BL)
        return i + 1, decays_NBL[i] * state_BL + ends_NBL[i], entering

    _, _, entering = tf.while_loop(
        lambda i, *_: i < chunks, step, (0, initial_state, entering), maximum_iterations=chunks
    )
    return tf.transpose(entering.stack(), (1, 0, 2))


@tf.custom_gradient
def _linear_recurrence(
    x: tf.Tensor, a: tf.Tensor, initial_state: tf.Tensor
) -> tuple[tuple[tf.Tensor, tf.Tensor], Callable[..., Any]]:
    h_BTL, last_BL = _run(x, a, initial_state)

    def gradient(
        h_gradient: tf.Tensor, last_gradient: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        later_a = tf.concat([tf.ones_like(a[:, :1]), tf.reverse(a, [1])[:, :-1]], axis=1)
        reversed_BTL, _ = _run(tf.reverse(h_gradient, [1]), later_a, last_gradient)
        x_gradient = tf.reverse(reversed_BTL, [1])
        before_BTL = tf.concat([initial_state[:, None], h_BTL[:, :-1]], axis=1)
        return x_gradient, x_gradient * before_BTL, a[:, 0] * x_gradient[:, 0]

    return (h_BTL, last_BL), gradient


def _in_float32(
    x: tf.Tensor, a: tf.Tensor, initial_state: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    return _linear_recurrence(tf.cast(x, "float32"), tf.cast(a, "float32"), initial_state)


IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {"chunked": _in_float32}
