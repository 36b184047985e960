"""Creates a causal language model from presets, checkpoints of others and adapters."""

import dataclasses
import pathlib
from collections.abc import Container
from typing import Any, Self

from keras_rgemma.checkpoints import keras_preset
from keras_rgemma.checkpoints.folder import Checkpoint, open_checkpoint, tokenizer_file
from keras_rgemma.checkpoints.hub import CONFIG, WEIGHTS
from keras_rgemma.checkpoints.presets import has_tokenizer, resolve_model
from keras_rgemma.checkpoints.rounding import check_mode
from keras_rgemma.config import RGemmaConfig
from keras_rgemma.lora import peft
from keras_rgemma.types import StrPath

_SIZES = {field.name for field in dataclasses.fields(RGemmaConfig)}


class PresetLoading:
    """Mixin for `RGemmaCausalLM` that loads presets. List it before KerasHub's class."""

    @classmethod
    def from_preset(
        cls,
        preset: StrPath,
        load_weights: bool = True,
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        quantize: str | None = None,
        **kwargs: Any,
    ) -> Self:
        """Creates the model from a preset, with a preprocessor if the preset has a tokenizer.

        Args:
            preset, load_weights, revision, subfolder, quantize: see
                `RGemmaBackbone.from_preset`.
            **kwargs: `dtype`, `preprocessor`, arguments of `keras.Model`, and arguments of the
                backbone that replace those in the preset.

        Raises:
            ValueError: see `RGemmaBackbone.from_preset`, also for the errors of a hub.

        Example:
        ```python
        lm = keras_rgemma.RGemmaCausalLM.from_preset("rgemma_tiny_en", dtype="bfloat16")
        ```
        """
        check_mode(quantize)
        part = WEIGHTS if load_weights else CONFIG
        folder, adapter = resolve_model(preset, part, revision, subfolder)
        lm = cls._from_folder(folder, load_weights, quantize, **kwargs)
        if adapter and load_weights:
            peft.load(lm.backbone, adapter)
        return lm

    @classmethod
    def _from_folder(
        cls, folder: str, load_weights: bool, quantize: str | None, **kwargs: Any
    ) -> Self:
        checkpoint = open_checkpoint(folder)
        if checkpoint:
            return cls._from_checkpoint(checkpoint, load_weights, quantize, **kwargs)
        if pathlib.Path(folder).is_dir() and not has_tokenizer(folder):
            kwargs.setdefault("preprocessor", None)
        if sizes := _pop(kwargs, _SIZES):  # KerasHub would pass these to the model
            if "preprocessor" not in kwargs:
                kwargs["preprocessor"] = cls.preprocessor_cls.from_preset(folder)
            sizes |= _pop(kwargs, {"dtype"})
            return cls(
                cls.backbone_cls.from_folder(folder, load_weights, quantize, **sizes), **kwargs
            )
        return keras_preset.load(super().from_preset, folder, load_weights, quantize, **kwargs)

    @classmethod
    def _from_checkpoint(
        cls,
        checkpoint: Checkpoint,
        load_weights: bool,
        quantize: str | None,
        dtype: Any = None,
        **kwargs: Any,
    ) -> Self:
        if "preprocessor" not in kwargs and tokenizer_file(checkpoint.path):
            kwargs["preprocessor"] = cls.preprocessor_cls.from_preset(checkpoint.path)
        # Checked before gigabytes are read.
        check_vocabularies(kwargs.get("preprocessor"), checkpoint.config.vocabulary_size)
        sizes = _pop(kwargs, _SIZES)
        backbone = checkpoint.backbone(
            cls.backbone_cls, load_weights, quantize, dtype=dtype, **sizes
        )
        return cls(backbone, **kwargs)


def _pop(kwargs: dict[str, Any], names: Container[str]) -> dict[str, Any]:
    """Removes arguments from a dict and returns a dict of the removed arguments."""
    return {name: kwargs.pop(name) for name in list(kwargs) if name in names}


def check_vocabularies(preprocessor: Any, vocabulary_size: int) -> None:
    """Raises ValueError if a tokenizer has more tokens than a model has embeddings."""
    tokenizer = getattr(preprocessor, "tokenizer", None)
    # A tokenizer that is being loaded has no vocabulary yet.
    if getattr(tokenizer, "proto", None) is None:
        return
    if tokenizer.vocabulary_size() > vocabulary_size:
        raise ValueError(
            f"The tokenizer has {tokenizer.vocabulary_size()} tokens, but the embedding only "
            f"{vocabulary_size}. Use the tokenizer that belongs to this model."
        )
