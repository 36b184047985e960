"""DeepMind's torch weights: one `.pt` file, as Kaggle has it."""

import pathlib

import ml_dtypes
import numpy as np

from keras_rgemma.checkpoints.deepmind import check_sizes, only

DTYPES = {f"torch.{name}": name for name in ("float64", "float32", "float16")}
DTYPES["torch.bfloat16"] = ml_dtypes.bfloat16
FILE = "params.pt"  # ours for it; Kaggle names it after the variant
_REOPEN_AFTER = 1 << 28  # bytes


def find(path):
    """The `.pt` file that a path stands for: itself or the one such file in a folder; or None.

    Raises:
        ValueError: there are several in it.
    """
    path = pathlib.Path(path)
    if path.is_file():
        return path if path.suffix == ".pt" else None
    return only(path, path.glob("*.pt")) if path.is_dir() else None


def write(folder, tensors):
    """Writes tensors as a dict that DeepMind's torch model loads with `load_state_dict`.

    Args:
        folder: `pathlib.Path`, where the file goes.
        tensors: iterable of pairs of a name and a NumPy array.

    Raises:
        ImportError: torch is not installed.
    """
    torch = _torch()

    def tensor(array):
        if array.dtype == ml_dtypes.bfloat16:  # which PyTorch does not take from NumPy
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
    """The tensors of a `.pt` file, read one at a time.

    Attributes:
        format: str, which names of the table its tensors have.
        shapes: dict of a tensor's name to its shape, tuple of ints.
        dtypes: dict of a tensor's name to its NumPy dtype.
        copies: empty; see `SafetensorsFolder`.

    Raises:
        ValueError: the file is broken, or holds something else than tensors by name.
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
            # Tensors alone: a pickle can hold code, which this refuses to run.
            found = torch.load(self.file, map_location="cpu", mmap=True, weights_only=True)
        except Exception as error:  # of many classes, which PyTorch does not document
            raise ValueError(
                f"{str(self.file)!r} cannot be read as tensors of PyTorch; no code in it was run. "
                f"{error}"
            ) from error
        strange = [] if isinstance(found, dict) else [type(found).__name__]
        strange = strange or [
            name
            for name, value in found.items()
            if not (isinstance(name, str) and torch.is_tensor(value) and str(value.dtype) in DTYPES)
        ]
        if strange:
            raise ValueError(
                f"{str(self.file)!r} must hold a dict of names to floating-point tensors. Found: "
                f"{strange[:8]}."
            )
        return found

    def read(self, name):
        """A tensor as a NumPy array of its own memory."""
        torch = _torch()
        if self._read_bytes > _REOPEN_AFTER:
            # Pages of an open file count as memory of the process.
            self._open, self._read_bytes = None, 0
            self._open = self._tensors()
        tensor = self._open[name].detach()
        self._read_bytes += tensor.nbytes
        if tensor.dtype == torch.bfloat16:  # which NumPy does not know
            return np.array(tensor.view(torch.int16).numpy()).view(ml_dtypes.bfloat16)
        return np.array(tensor.numpy())
