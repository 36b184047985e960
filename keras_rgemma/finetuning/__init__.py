"""Training a model further: LoRA and its adapters, examples to learn from, long texts."""

from keras_rgemma.finetuning.long_texts import LongTexts
from keras_rgemma.finetuning.optimizer import AdamW

__all__ = ["AdamW", "LongTexts"]
