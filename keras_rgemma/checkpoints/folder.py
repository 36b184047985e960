"""Opens a checkpoint at a local path: finds its format, architecture and tokenizer."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import sentencepiece

from keras_rgemma.checkpoints import (
    deepmind,
    deepmind_flax,
    deepmind_torch,
    huggingface,
    pytorch_bin,
    safetensors,
    tokenizer_json,
)
from keras_rgemma.checkpoints.adapter import is_adapter
from keras_rgemma.checkpoints.loading import load
from keras_rgemma.checkpoints.rounding import Rounding
from keras_rgemma.checkpoints.source import TensorSource
from keras_rgemma.checkpoints.unwrapped import Unwrapped
from keras_rgemma.config import RGemmaConfig
from keras_rgemma.files import read_json
from keras_rgemma.keras_internals.layers import small_collections
from keras_rgemma.types import StrPath

# Files of weights in a folder with a config.
_WEIGHTS = ("*.safetensors", "*.weights.h5", "*.bin")
_NUMBERS = re.compile(r"(\d+)")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Describes a checkpoint in a format of Hugging Face or DeepMind.

    Attributes:
        path: str or path, the folder or file that was opened.
        config: `RGemmaConfig`.
        open_weights: function that returns the `TensorSource` of the weights.
    """

    path: StrPath
    config: RGemmaConfig
    open_weights: Callable[[], TensorSource]

    @property
    def dtype(self) -> str:
        """Returns the name of the dtype that holds all weights."""
        return np.result_type(*self.open_weights().dtypes.values()).name

    def backbone(
        self,
        cls: Callable[..., Any],
        load_weights: bool = True,
        quantize: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Makes the backbone of this checkpoint, with its weights.

        Args:
            cls: `RGemmaBackbone` or a subclass of it.
            load_weights: bool; False for random weights.
            quantize: None, "int8" or "int4", to which each weight is rounded as soon as it is read.
            **kwargs: arguments of the constructor, which replace the values of the checkpoint.

        Raises:
            ValueError: the weights are broken, or do not fit the architecture.
        """
        fields = self.config.to_dict()
        changes = {name: kwargs.pop(name) for name in list(kwargs) if name in fields}
        config = RGemmaConfig(**{**fields, **changes})

        def make(**others: Any) -> Any:
            return cls(**config.to_dict(), **{**kwargs, **others})

        if not load_weights:
            backbone = make()
            if quantize:
                backbone.quantize(quantize)
            return backbone
        if not quantize:
            return load(config, self.open_weights(), make)
        rounding = Rounding(quantize, kwargs.get("dtype"))
        with small_collections():
            return load(config, self.open_weights(), lambda: rounding.make(config, make), rounding)


def open_checkpoint(path: StrPath) -> Checkpoint | None:
    """Opens the `Checkpoint` at a path; returns None for a Keras preset and for no local path.

    Args:
        path: str or path. A folder of Hugging Face; an Orbax folder of DeepMind, or the folder
            around it; a `.pt` file of DeepMind, or the folder around it.

    Raises:
        ValueError: the checkpoint belongs to another kind of model, or is broken.
    """
    folder = pathlib.Path(path)
    config = folder / huggingface.CONFIG
    if config.is_file():
        contents = read_json(config)
        if not huggingface.is_config(contents):
            return None
        weights = functools.partial(_open_huggingface, path)
        return Checkpoint(path, huggingface.config_from(contents), weights)
    if weights_path := deepmind_flax.find(folder):
        source = deepmind_flax.OrbaxFolder(weights_path)
    elif weights_path := deepmind_torch.find(folder):
        source = deepmind_torch.TorchFile(weights_path)
    else:
        return None
    beside = weights_path.parent / deepmind.CONFIG
    config = _config_in(beside) if beside.is_file() else deepmind.config_from(source.shapes)
    return Checkpoint(path, config, lambda: source)


def _open_huggingface(path: StrPath) -> Unwrapped:
    """Opens the weights in a folder of Hugging Face, a `TensorSource`."""
    formats = (
        (safetensors.SafetensorsFolder, safetensors.WEIGHTS, safetensors.INDEX),
        (pytorch_bin.PytorchFolder, pytorch_bin.WEIGHTS, pytorch_bin.INDEX),
    )
    for source, *files in formats:  # transformers prefers them in this order, too
        if any((pathlib.Path(path) / file).exists() for file in files):
            return Unwrapped(source(path))
    names = [file for _, *files in formats for file in files]
    raise ValueError(
        f"{str(path)!r} holds neither {' nor '.join(names)}. Fetch the weights again, or pass "
        f"`load_weights=False` for random weights.{hint_of_loadable_inside(path)}"
    )


def hint_of_loadable_inside(path: StrPath, are_weights_here: bool = True) -> str:
    """Names the folders inside of a folder that would load, a sentence; empty if there are none.

    Such as `checkpoint-500`, which the Trainer of transformers writes.

    Args:
        path: str or path of a folder.
        are_weights_here: bool; False before weights are fetched, where configs are enough.
    """
    folder = pathlib.Path(path)
    children = folder.iterdir() if folder.is_dir() else ()
    names = [child.name for child in children if _would_load(child, are_weights_here)]
    if not names:
        return ""
    # checkpoint-500 before checkpoint-1000
    names.sort(key=lambda name: [int(x) if x.isdecimal() else x for x in _NUMBERS.split(name)])
    return (
        f" These folders in it would load: {names}. Pass `subfolder={names[-1]!r}`, or the path of "
        "one."
    )


def _would_load(folder: pathlib.Path, are_weights_here: bool) -> bool:
    """Checks whether a folder has the config of a model or of an adapter, and weights."""
    if are_weights_here and not any(any(folder.glob(pattern)) for pattern in _WEIGHTS):
        return False
    config = folder / huggingface.CONFIG
    if not config.is_file():
        return is_adapter(folder)
    try:
        contents = read_json(config)
    except ValueError:
        return False
    return huggingface.is_recurrent_gemma(contents) or "class_name" in contents


def _config_in(file: pathlib.Path) -> RGemmaConfig:
    """Reads the `RGemmaConfig` that this package wrote beside weights."""
    try:
        return RGemmaConfig(**read_json(file))
    except TypeError as error:
        raise ValueError(f"{str(file)!r} is no architecture of this package: {error}.") from error


def tokenizer_file(path: StrPath) -> str | None:
    """Finds the tokenizer of a checkpoint; returns the path of its file, str, or None without one.

    The file is tokenizer.model, or Hugging Face's tokenizer.json where that is alone. It lies in
    the folder of the checkpoint, or beside its weights.
    """
    folder = pathlib.Path(path)
    places = [folder]
    if not (folder / huggingface.CONFIG).is_file():
        weights = deepmind_flax.find(folder) or deepmind_torch.find(folder)
        places += [weights.parent] if weights else []
    files = [place / huggingface.TOKENIZER for place in places]
    found = next((file for file in files if file.is_file()), None) or _tokenizer_json(folder)
    return None if found is None else str(found)


def read_tokenizer(path: StrPath) -> dict[str, Any] | None:
    """Reads the tokenizer of a checkpoint, and returns arguments of `RGemmaTokenizer`.

    Where tokenizer.model and tokenizer.json differ in their tokens, tokenizer.json counts:
    transformers reads that file, and writes into it the tokens that a fine-tune adds.

    Args:
        path: str or path, as of `open_checkpoint`.

    Returns:
        dict, or None if there is no tokenizer.

    Raises:
        ValueError: a file is broken, or has a setting that a SentencePiece model cannot have.
    """
    model = tokenizer_file(path)
    file = _tokenizer_json(pathlib.Path(path))
    if file is None or (model != str(file) and _holds_tokens_of(model, file, path)):
        return None if model is None else {"proto": model}
    return tokenizer_json.read(file, _vocabulary_size(path))._asdict()


def _tokenizer_json(folder: pathlib.Path) -> pathlib.Path | None:
    """Returns the path of Hugging Face's tokenizer.json in a folder, or None without one."""
    file = folder / tokenizer_json.FILE
    if not file.is_file():
        return None
    # A Keras preset's is small; the vocabulary in Hugging Face's takes a second to parse.
    is_large = file.stat().st_size > 1 << 20
    return file if is_large or tokenizer_json.is_hugging_face(read_json(file)) else None


def _holds_tokens_of(model: str | None, file: pathlib.Path, path: StrPath) -> bool:
    """Checks whether the tokens of a tokenizer.json are those of a tokenizer.model."""
    try:
        processor = sentencepiece.SentencePieceProcessor(model_file=model)
    except Exception:  # a broken file, for which `RGemmaTokenizer` has an error
        return True
    pieces = processor.IdToPiece(list(range(processor.GetPieceSize())))
    return pieces == tokenizer_json.tokens(read_json(file), _vocabulary_size(path))


def _vocabulary_size(path: StrPath) -> int | None:
    """Returns the number of embeddings that the config beside a tokenizer names, or None."""
    config = pathlib.Path(path) / huggingface.CONFIG
    size = read_json(config).get("vocab_size") if config.is_file() else None
    return size if isinstance(size, int) else None
