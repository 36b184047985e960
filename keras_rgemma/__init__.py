"""RecurrentGemma for Keras 3, on JAX, TensorFlow and PyTorch."""

import importlib

from keras_rgemma.generation.session import RGemmaState
from keras_rgemma.model.backbone import RGemmaBackbone
from keras_rgemma.model.causal_lm import RGemmaCausalLM
from keras_rgemma.model.preprocessor import RGemmaCausalLMPreprocessor
from keras_rgemma.model.tokenizer import RGemmaTokenizer

__version__ = "0.1.0"

__all__ = [
    "RGemmaBackbone",
    "RGemmaCausalLM",
    "RGemmaCausalLMPreprocessor",
    "RGemmaState",
    "RGemmaTokenizer",
]


def __getattr__(name):
    if name == "finetuning":  # imported when it is first asked for
        return importlib.import_module("keras_rgemma.finetuning")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
