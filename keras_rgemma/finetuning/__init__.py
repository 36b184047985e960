"""Training a model further: LoRA and its adapters, examples to learn from, the optimizer."""

from keras_rgemma.finetuning.optimizer import AdamW

__all__ = ["AdamW"]
