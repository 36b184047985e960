"""Reads and writes DeepMind's torch weights: one `.pt` file, as Kaggle publishes it."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from keras_rgemma.checkpoints.deepmind import check_sizes, only
from keras_rgemma.checkpoints.torch_tensors import TorchTensors, import_torch
from keras_rgemma.types import StrPath

if TYPE_CHECKING:
    import torch


FILE = "params.pt"  # the name that this package gives it; Kaggle names the file after the variant


def find(path: StrPath) -> pathlib.Path | None:
    """Finds the `.pt` file at a path or in the folder at a path; returns None if none.

    Raises:
        ValueError: the folder holds several `.pt` files.
    """
    path = pathlib.Path(path)
    if path.is_file():
        return path if path.suffix == ".pt" else None
    return only(path, path.glob("*.pt")) if path.is_dir() else None


def write(folder: pathlib.Path, tensors: Iterable[tuple[str, np.ndarray]]) -> None:
    """Writes tensors as a dict that DeepMind's torch model loads with `load_state_dict`.

    Args:
        folder: `pathlib.Path` of the folder around the file.
        tensors: iterable of pairs of a name and a NumPy array.

    Raises:
        ImportError: torch is not installed.
    """
    torch = import_torch(FILE)

    def tensor(array: np.ndarray) -> torch.Tensor:
        if array.dtype == ml_dtypes.bfloat16:  # PyTorch does not take it from NumPy
            return torch.from_numpy(array.view("int16")).view(torch.bfloat16)
        return torch.from_numpy(array)

    torch.save({name: tensor(array) for name, array in tensors}, folder / FILE)


class TorchFile(TorchTensors):
    """Reads the tensors of a `.pt` file: a `TensorSource`.

    Args:
        file: str or path.

    Raises:
        ValueError: the file is broken, or holds something else than a dict of tensors.
        ImportError: torch is not installed.
    """

    format = "torch"
    copies: dict[str, str]

    def __init__(self, file: StrPath) -> None:
        super().__init__(file)
        self.copies = {}
        # Strides of 0 let a small file stand for tensors of any size.
        check_sizes(self.file, self, self.file.stat().st_size)
