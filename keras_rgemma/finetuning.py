"""Exports the public names of training: `AdamW` and `LongTexts`."""

from keras_rgemma.training.long_texts import LongTexts
from keras_rgemma.training.optimizer import AdamW

__all__ = ["AdamW", "LongTexts"]
