"""RecurrentGemma for Keras 3, on JAX, TensorFlow and PyTorch."""

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
