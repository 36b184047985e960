"""RecurrentGemma for Keras 3, on JAX, TensorFlow and PyTorch."""

import importlib
import pathlib
import sys
from typing import Any

from keras_rgemma.startup import without_startup_lines

__version__ = "0.1.0"

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


def _is_command() -> bool:
    """Returns whether this process is `keras-rgemma` or `python -m keras_rgemma.cli`."""
    program = (getattr(sys, "argv", None) or [""])[0]
    if program == "-m":  # Python is still looking for the module that it runs
        return f"{__name__}.cli" in [word.removeprefix("-m") for word in sys.orig_argv]
    return pathlib.PurePath(program).stem == "keras-rgemma"


if _is_command():
    # Python imports a package before any module in it, so the command's own module comes after
    # this one. It answers `--help` and typing errors at once: KerasHub, with TensorFlow behind it,
    # takes seconds. An entry module beside the package would need a folder of its own in wheels
    # and, for `pip install -e`, on the path; this works wherever the package does.
    def __getattr__(name: str) -> Any:
        if name in __all__:
            with without_startup_lines():
                return getattr(importlib.import_module("keras_rgemma.api"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
else:
    with without_startup_lines():
        from keras_rgemma.api import (
            RGemmaBackbone,
            RGemmaCausalLM,
            RGemmaCausalLMPreprocessor,
            RGemmaState,
            RGemmaTokenizer,
            finetuning,
            implementation,
            plan,
            set_implementation,
        )
