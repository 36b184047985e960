"""Reads and writes the safetensors files of a Hugging Face folder: one, or more with an index."""

import pathlib

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from keras_rgemma.checkpoints.names import LM_HEAD
from keras_rgemma.files import read_json, write_json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 2 << 30
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": ml_dtypes.bfloat16}


def write(folder, tensors):
    """Writes weights, in files of at most 2 GiB each if tensors allow.

    Args:
        folder: `pathlib.Path`.
        tensors: iterable of pairs of a name and a NumPy array; only the tensors of one file are in
            memory at a time.
    """
    files, shard, size, total = [], {}, 0, 0

    def flush():
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

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.copies = {LM_HEAD: "model.embed_tokens.weight"}
        self.shapes, self.dtypes, self._files = {}, {}, {}
        for file in self._listed_files():
            with self._opened(file) as opened:
                for name in opened.keys():  # noqa: SIM118  (`opened` is no dict)
                    tensor = opened.get_slice(name)
                    self._check_listed(name, file)
                    self.shapes[name] = tuple(tensor.get_shape())
                    self._files[name] = file
                    self.dtypes[name] = _dtype_of(tensor.get_dtype())
        absent = sorted(set(self._weight_map or ()) - set(self.shapes))
        if absent:
            raise ValueError(f"{INDEX} lists tensors that its files do not hold: {absent}.")

    def _listed_files(self):
        self._weight_map = None
        if (self.folder / WEIGHTS).exists():  # transformers prefers this file, too
            return [WEIGHTS]
        if not (self.folder / INDEX).exists():
            raise ValueError(f"{str(self.folder)!r} holds neither {WEIGHTS} nor {INDEX}.")
        self._weight_map = read_json(self.folder / INDEX).get("weight_map")
        if not isinstance(self._weight_map, dict) or not self._weight_map:
            raise ValueError(f"{INDEX} has no `weight_map` of tensors to files.")
        for file in self._weight_map.values():
            is_name = isinstance(file, str) and pathlib.PurePath(file).name == file
            if not is_name or file in ("", "..") or "\\" in file:
                raise ValueError(
                    f"{INDEX} names the file {file!r}, which is not a plain name in its own "
                    "folder. The checkpoint is broken or hostile; nothing was read from there."
                )
        return sorted(set(self._weight_map.values()))

    def _check_listed(self, name, file):
        if name in self.shapes:
            raise ValueError(f"The tensor {name!r} is in {self._files[name]!r} and in {file!r}.")
        listed = file if self._weight_map is None else self._weight_map.get(name)
        if listed != file:
            raise ValueError(
                f"The tensor {name!r} is in {file!r}, but {INDEX} lists it in {listed!r}."
            )

    def _opened(self, file):
        try:
            return safetensors.safe_open(self.folder / file, "np")
        except (OSError, safetensors.SafetensorError) as error:
            raise ValueError(
                f"{file!r} in {str(self.folder)!r} is missing or broken: {error}. Fetch it again."
            ) from error

    def read(self, name, rows=None):
        """Reads a tensor, or a slice `rows` of its first axis: see `TensorSource.read`."""
        # Opened for each tensor, because pages of an open file count as memory of the process.
        with self._opened(self._files[name]) as opened:
            return opened.get_tensor(name) if rows is None else opened.get_slice(name)[rows]


def _dtype_of(dtype):
    """Returns the NumPy dtype of a dtype's name in safetensors."""
    if dtype not in DTYPES:
        raise ValueError(
            f"Weights must be floating-point numbers of 16 to 64 bits. Received: {dtype}. "
            "Dequantize the checkpoint first."
        )
    return np.dtype(DTYPES[dtype])
