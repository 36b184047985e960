"""What a local path holds: which format, which architecture, which tokenizer."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import numpy as np

from keras_rgemma.checkpoints import (
    deepmind,
    deepmind_flax,
    deepmind_torch,
    huggingface,
    safetensors,
)
from keras_rgemma.checkpoints.loading import load
from keras_rgemma.config import RGemmaConfig
from keras_rgemma.files import read_json


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in a format of others.

    Attributes:
        path: str, of the folder or file that it was opened from.
        config: `RGemmaConfig`.
        open_weights: function that returns the source of the tensors, such as a
            `safetensors.SafetensorsFolder`.
    """

    path: str
    config: RGemmaConfig
    open_weights: Callable

    @property
    def dtype(self):
        """The dtype that holds all of its weights, str."""
        return np.result_type(*self.open_weights().dtypes.values()).name

    def backbone(self, cls, load_weights=True, **kwargs):
        """The backbone that it describes, with its weights.

        Args:
            cls: `RGemmaBackbone` or a subclass of it.
            load_weights: bool; False for random weights.
            **kwargs: what the constructor takes, in place of what the checkpoint says.

        Raises:
            ValueError: the weights are broken, or do not fit the architecture.
        """
        fields = self.config.to_dict()
        changes = {name: kwargs.pop(name) for name in list(kwargs) if name in fields}
        config = RGemmaConfig(**{**fields, **changes})

        def make():
            return cls(**config.to_dict(), **kwargs)

        return load(config, self.open_weights(), make) if load_weights else make()


def open_checkpoint(path):
    """The `Checkpoint` at a local path, or None for a Keras preset and for what is no local path.

    Args:
        path: str. A folder of Hugging Face; an Orbax folder of DeepMind, or the folder around it;
            a `.pt` file of DeepMind, or the folder around it.

    Raises:
        ValueError: it is of another kind of model, broken, or not understood.
    """
    folder = pathlib.Path(path)
    config = folder / huggingface.CONFIG
    if config.is_file():
        theirs = read_json(config)
        if not huggingface.is_config(theirs):
            return None
        weights = functools.partial(safetensors.SafetensorsFolder, path)
        return Checkpoint(path, huggingface.config_from(theirs), weights)
    if found := deepmind_flax.find(folder):
        source = deepmind_flax.OrbaxFolder(found)
    elif found := deepmind_torch.find(folder):
        source = deepmind_torch.TorchFile(found)
    else:
        return None
    written = found.parent / deepmind.CONFIG
    config = _config_in(written) if written.is_file() else deepmind.config_from(source.shapes)
    return Checkpoint(path, config, lambda: source)


def _config_in(file):
    try:
        return RGemmaConfig(**read_json(file))
    except TypeError as error:
        raise ValueError(f"{str(file)!r} is no architecture of this package: {error}.") from error


def tokenizer_file(path):
    """The SentencePiece model that belongs to a checkpoint, str, or None if there is none.

    It lies in the folder of the checkpoint, or beside its weights.
    """
    folder = pathlib.Path(path)
    places = [folder]
    if not (folder / huggingface.CONFIG).is_file():
        weights = deepmind_flax.find(folder) or deepmind_torch.find(folder)
        places += [weights.parent] if weights else []
    files = [place / huggingface.TOKENIZER for place in places]
    return next((str(file) for file in files if file.is_file()), None)
