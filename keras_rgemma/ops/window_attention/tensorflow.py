"""Computes local attention on TensorFlow."""

import tensorflow as tf

from keras_rgemma.ops.window_attention.blocks import attend


def default_implementation():
    return "blocks"


def write_slots(ring_BWKH, slot_B, new_BKH, is_token_B1):
    """Writes one slot in each row of a ring buffer, except rows without a token."""
    is_slot_BW = tf.range(ring_BWKH.shape[1])[None] == slot_B[:, None]
    if is_token_B1 is not None:
        is_slot_BW = tf.logical_and(is_slot_BW, is_token_B1)
    new_BKH = tf.cast(new_BKH, ring_BWKH.dtype)
    return tf.where(is_slot_BW[:, :, None, None], new_BKH[:, None], ring_BWKH)


IMPLEMENTATIONS = {"blocks": attend}
