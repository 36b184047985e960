"""Reads the `pytorch_model.bin` of a Hugging Face folder: one file, or more with an index."""

import pathlib

import numpy as np

from keras_rgemma.checkpoints.deepmind import check_sizes
from keras_rgemma.checkpoints.names import EMBEDDING, LM_HEAD
from keras_rgemma.checkpoints.shards import Shards
from keras_rgemma.checkpoints.torch_tensors import TorchTensors
from keras_rgemma.types import StrPath

WEIGHTS = "pytorch_model.bin"
INDEX = "pytorch_model.bin.index.json"


class PytorchFolder:
    """Reads the tensors of a Hugging Face folder: a `TensorSource`.

    Args:
        folder: str or path.

    Raises:
        ValueError: there are no weights, a file is broken or missing, or the index does not fit.
        ImportError: torch is not installed.
    """

    format = "huggingface"
    copies: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, np.dtype]

    def __init__(self, folder: StrPath) -> None:
        folder = pathlib.Path(folder)
        self.copies = {LM_HEAD: EMBEDDING}
        self.shapes, self.dtypes, self._files = {}, {}, {}
        shards = Shards(folder, WEIGHTS, INDEX)
        for file in shards.files:
            opened = self._files[file] = TorchTensors(folder / file)
            opened.close()
            for name in opened.shapes:
                shards.add(name, file)
            self.shapes |= opened.shapes
            self.dtypes |= opened.dtypes
        shards.check_complete()
        self._owners, self._last = shards.owners, None
        # In these files a copy takes no bytes of its own.
        size = sum((folder / file).stat().st_size for file in shards.files)
        check_sizes(folder, self, size, lambda name: not name.endswith(LM_HEAD))

    def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        """Reads a tensor, or a slice `rows` of its first axis: see `TensorSource.read`."""
        file = self._files[self._owners[name]]
        if self._last not in (None, file):
            self._last.close()
        self._last = file
        return file.read(name, rows)
