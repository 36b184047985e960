"""Bounds logits on JAX, which fuses the operations where it compiles."""

from keras_rgemma.ops.soft_cap.plain import soft_cap

__all__ = ["soft_cap"]
