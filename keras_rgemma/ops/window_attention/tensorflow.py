"""Computes local attention on TensorFlow."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_rgemma.ops.window_attention.blocks import attend


def default_implementation() -> str:
    return "blocks"


def write_slots(
    ring_BWKH: tf.Tensor, slot_B: tf.Tensor, new_BKH: tf.Tensor, is_token_B1: tf.Tensor | None
) -> tf.Tensor:
    """Writes one slot in each row of a ring buffer, except rows without a token."""
    is_slot_BW = tf.range(ring_BWKH.shape[1])[None] == slot_B[:, None]
    if is_token_B1 is not None:
        is_slot_BW = tf.logical_and(is_slot_BW, is_token_B1)
    new_BKH = tf.cast(new_BKH, ring_BWKH.dtype)
    return tf.where(is_slot_BW[:, :, None, None], new_BKH[:, None], ring_BWKH)


IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {"blocks": attend}
