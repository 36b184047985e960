"""Reads the tensors in a file of `torch.save`, and runs no code in it."""

import pathlib
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

from keras_rgemma.types import StrPath

DTYPES: dict[str, DTypeLike] = {f"torch.{name}": name for name in ("float64", "float32", "float16")}
DTYPES["torch.bfloat16"] = ml_dtypes.bfloat16
_REOPEN_AFTER = 1 << 28  # bytes


def import_torch(name: str) -> ModuleType:
    """Imports PyTorch for a file with this name.

    Raises:
        ImportError: PyTorch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"{name!r} is a file of PyTorch, and read and written with it. Install it with "
            "`pip install torch`."
        ) from error
    return torch


class TorchTensors:
    """Reads the tensors of one file, a dict of names to tensors.

    Args:
        file: str or path.

    Attributes:
        file: `pathlib.Path`.
        shapes, dtypes: dicts, as of `TensorSource`.

    Raises:
        ValueError: the file is broken, or holds something else than a dict of tensors.
        ImportError: torch is not installed.
    """

    file: pathlib.Path
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, np.dtype]

    def __init__(self, file: StrPath) -> None:
        self.file = pathlib.Path(file)
        self._open, self._read_bytes = self._tensors(), 0
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._open.items()}
        self.dtypes = {name: np.dtype(DTYPES[str(x.dtype)]) for name, x in self._open.items()}

    def _tensors(self) -> dict[str, Any]:
        torch = import_torch(self.file.name)
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

    def close(self) -> None:
        """Closes the file until the next reading: pages of an open file count as memory."""
        self._open, self._read_bytes = None, 0

    def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        """Reads a tensor, or a slice `rows` of its first axis: see `TensorSource.read`."""
        torch = import_torch(self.file.name)
        if self._read_bytes > _REOPEN_AFTER:
            self.close()
        if self._open is None:
            self._open = self._tensors()
        tensor = self._open[name].detach()[rows] if self.shapes[name] else self._open[name].detach()
        self._read_bytes += tensor.nbytes
        if tensor.dtype == torch.bfloat16:  # NumPy does not know this dtype
            return np.array(tensor.view(torch.int16).numpy()).view(ml_dtypes.bfloat16)
        return np.array(tensor.numpy())
