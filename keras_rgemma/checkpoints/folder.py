"""What a local folder holds: which format, which architecture."""

import dataclasses
import pathlib

from keras_rgemma.checkpoints import huggingface
from keras_rgemma.checkpoints.loading import load
from keras_rgemma.config import RGemmaConfig


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in a format of others.

    Attributes:
        folder: str.
        config: `RGemmaConfig`.
    """

    folder: str
    config: RGemmaConfig

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

        if not load_weights:
            return make()
        return load(config, huggingface.SafetensorsFolder(self.folder), make)


def open_checkpoint(folder):
    """The `Checkpoint` in a local folder, or None for a Keras preset and for what is no folder.

    Raises:
        ValueError: `config.json` is of another kind of model, or not understood.
    """
    config = pathlib.Path(folder) / huggingface.CONFIG
    if not config.is_file():
        return None
    theirs = huggingface.read_json(config)
    if not huggingface.is_config(theirs):
        return None
    return Checkpoint(str(folder), huggingface.config_from(theirs))
