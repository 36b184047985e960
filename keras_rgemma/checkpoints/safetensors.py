"""Reads and writes the safetensors files of a Hugging Face folder: one, or more with an index."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Iterable
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import DTypeLike

from keras_rgemma.checkpoints.names import EMBEDDING, LM_HEAD
from keras_rgemma.checkpoints.shards import Shards
from keras_rgemma.files import write_json
from keras_rgemma.types import StrPath

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 2 << 30
DTYPES: dict[str, DTypeLike] = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": ml_dtypes.bfloat16,
}


def write(folder: pathlib.Path, tensors: Iterable[tuple[str, np.ndarray]]) -> None:
    """Writes weights, in files of at most 2 GiB each if tensors allow.

    Args:
        folder: `pathlib.Path`.
        tensors: iterable of pairs of a name and a NumPy array; only the tensors of one file are in
            memory at a time.
    """
    files, shard, size, total = [], {}, 0, 0

    def flush() -> None:
        files.append((folder / f"{len(files) + 1}.partial", list(shard)))
        safetensors.numpy.save_file(shard, files[-1][0], metadata={"format": "pt"})
        shard.clear()

    for name, array in tensors:
        if shard and size + array.nbytes > SHARD_BYTES:
            flush()
            size = 0
        shard[name] = array
        size, total = size + array.nbytes, total + array.nbytes
    flush()
    if len(files) == 1:
        files[0][0].rename(folder / WEIGHTS)
        return
    weight_map = {}
    for number, (file, listed) in enumerate(files, start=1):
        final = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        file.rename(folder / final)
        weight_map.update(dict.fromkeys(listed, final))
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


class SafetensorsFolder:
    """Reads the tensors of a Hugging Face folder: a `TensorSource`.

    Args:
        folder: str or path.

    Raises:
        ValueError: there are no weights, a file is broken or missing, or the index does not fit.
    """

    format = "huggingface"
    folder: pathlib.Path
    copies: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, np.dtype]

    def __init__(self, folder: StrPath) -> None:
        self.folder = pathlib.Path(folder)
        self.copies = {LM_HEAD: EMBEDDING}
        self.shapes, self.dtypes, self._starts = {}, {}, {}
        shards = Shards(self.folder, WEIGHTS, INDEX)
        for file in shards.files:
            with self._opened(file) as opened:
                for name in opened.keys():  # noqa: SIM118  (`opened` is no dict)
                    tensor = opened.get_slice(name)
                    shards.add(name, file)
                    self.shapes[name] = tuple(tensor.get_shape())
                    self.dtypes[name] = _dtype_of(tensor.get_dtype())
            self._starts |= _starts(self.folder / file)
        shards.check_complete()
        self._files = shards.owners

    def _opened(self, file: str) -> Any:
        path = self.folder / file
        try:
            return safetensors.safe_open(path, "np")
        except (OSError, safetensors.SafetensorError) as error:
            raise _broken(path, error) from error

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        """Maps a tensor, or a slice `rows` of its first axis: see `TensorSource.read`.

        Nothing is copied: the operating system reads the pages that are looked at, and drops them
        with the array. Each array has a mapping of its own, because pages of a mapped file count
        as memory of the process.
        """
        path, shape, dtype = self.folder / self._files[name], self.shapes[name], self.dtypes[name]
        if not math.prod(shape):  # an empty range of a file cannot be mapped
            return np.empty(shape, dtype)
        try:
            array = np.asarray(np.memmap(path, dtype, "c", self._starts[name], shape))
        except (OSError, ValueError) as error:
            raise _broken(path, error) from error
        return array if rows is None else array[rows]


def _broken(path: pathlib.Path, error: BaseException) -> ValueError:
    """Makes the error for a file that cannot be read."""
    return ValueError(
        f"{path.name!r} in {str(path.parent)!r} is missing or broken: {error}. Fetch it again."
    )


def _starts(path: pathlib.Path) -> dict[str, int]:
    """Returns the places of tensors in a file that `safe_open` has checked, a dict of bytes."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return {name: 8 + size + entry["data_offsets"][0] for name, entry in header.items()}


def _dtype_of(dtype: str) -> np.dtype:
    """Returns the NumPy dtype of a dtype's name in safetensors."""
    if dtype not in DTYPES:
        raise ValueError(
            f"Weights must be floating-point numbers of 16 to 64 bits. Received: {dtype}. "
            "Dequantize the checkpoint first."
        )
    return np.dtype(DTYPES[dtype])
