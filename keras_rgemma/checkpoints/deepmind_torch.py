"""Reads and writes DeepMind's torch weights: one `.pt` file, as Kaggle publishes it."""

import pathlib

import ml_dtypes
import numpy as np

from keras_rgemma.checkpoints.deepmind import check_sizes, only

DTYPES = {f"torch.{name}": name for name in ("float64", "float32", "float16")}
DTYPES["torch.bfloat16"] = ml_dtypes.bfloat16
FILE = "params.pt"  # the name that this package gives it; Kaggle names the file after the variant
_REOPEN_AFTER = 1 << 28  # bytes


def find(path):
    """Finds the `.pt` file at a path or in the folder at a path; returns None if none.

    Raises:
        ValueError: the folder holds several `.pt` files.
    """
    path = pathlib.Path(path)
    if path.is_file():
        return path if path.suffix == ".pt" else None
    return only(path, path.glob("*.pt")) if path.is_dir() else None


def write(folder, tensors):
    """Writes tensors as a dict that DeepMind's torch model loads with `load_state_dict`.

    Args:
        folder: `pathlib.Path` of the folder around the file.
        tensors: iterable of pairs of a name and a NumPy array.

    Raises:
        ImportError: torch is not installed.
    """
    torch = _torch()

    def tensor(array):
        if array.dtype == ml_dtypes.bfloat16:  # PyTorch does not take it from NumPy
            return torch.from_numpy(array.view("int16")).view(torch.bfloat16)
        return torch.from_numpy(array)

    torch.save({name: tensor(array) for name, array in tensors}, folder / FILE)


def _torch():
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            "A `.pt` file is read and written with PyTorch. Install it with `pip install torch`."
        ) from error
    return torch


class TorchFile:
    """Reads the tensors of a `.pt` file: a `TensorSource`.

    Args:
        file: str or path.

    Raises:
        ValueError: the file is broken, or holds something else than a dict of tensors.
        ImportError: torch is not installed.
    """

    format = "torch"

    def __init__(self, file):
        self.file = pathlib.Path(file)
        self.copies = {}
        self._open, self._read_bytes = self._tensors(), 0
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._open.items()}
        self.dtypes = {name: np.dtype(DTYPES[str(x.dtype)]) for name, x in self._open.items()}
        # Strides of 0 let a small file stand for tensors of any size.
        check_sizes(self.file, self, self.file.stat().st_size)

    def _tensors(self):
        torch = _torch()
        try:
            # Tensors alone: a pickle can hold code, which `weights_only` refuses to run.
            tensors = torch.load(self.file, map_location="cpu", mmap=True, weights_only=True)
        except Exception as error:  # of many classes, which PyTorch does not document
            raise ValueError(
                f"{str(self.file)!r} cannot be read as tensors of PyTorch; no code in it was run. "
                f"{error}"
            ) from error
        strange = [] if isinstance(tensors, dict) else [type(tensors).__name__]
        strange = strange or [
            name
            for name, value in tensors.items()
            if not (isinstance(name, str) and torch.is_tensor(value) and str(value.dtype) in DTYPES)
        ]
        if strange:
            raise ValueError(
                f"{str(self.file)!r} must hold a dict of names to floating-point tensors. Found: "
                f"{strange[:8]}."
            )
        return tensors

    def read(self, name):
        """Reads a tensor: see `TensorSource.read`."""
        torch = _torch()
        if self._read_bytes > _REOPEN_AFTER:
            # Pages of an open file count as memory of the process.
            self._open, self._read_bytes = None, 0
            self._open = self._tensors()
        tensor = self._open[name].detach()
        self._read_bytes += tensor.nbytes
        if tensor.dtype == torch.bfloat16:  # NumPy does not know this dtype
            return np.array(tensor.view(torch.int16).numpy()).view(ml_dtypes.bfloat16)
        return np.array(tensor.numpy())
