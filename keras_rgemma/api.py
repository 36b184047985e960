"""Collects the public names of the package; importing them registers its classes with Keras."""

from keras_rgemma import finetuning
from keras_rgemma.backend import implementation, set_implementation
from keras_rgemma.distribution.plan import plan
from keras_rgemma.model.backbone import RGemmaBackbone
from keras_rgemma.model.causal_lm import RGemmaCausalLM
from keras_rgemma.model.preprocessor import RGemmaCausalLMPreprocessor
from keras_rgemma.model.tokenizer import RGemmaTokenizer
from keras_rgemma.state.rgemma_state import RGemmaState

__all__ = [
    "RGemmaBackbone",
    "RGemmaCausalLM",
    "RGemmaCausalLMPreprocessor",
    "RGemmaState",
    "RGemmaTokenizer",
    "finetuning",
    "implementation",
    "plan",
    "set_implementation",
]
