"""Writes and reads the file of a state, which has a checksum and loads on any backend."""

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import keras
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import DTypeLike

from keras_rgemma.backend import tensor_of
from keras_rgemma.files import new_file
from keras_rgemma.sharding.host import destination, numpy_of
from keras_rgemma.state.fingerprint import Fingerprint
from keras_rgemma.state.records import RECORDS, ModelState
from keras_rgemma.types import StrPath, Tensor

# A file is MAGIC, the SHA-256 of the rest, and a safetensors file whose header has the metadata.
MAGIC = b"RGSTATE\n"
VERSION = 1
_DIGEST_BYTES = 32
_REQUIRED = set(Fingerprint._fields) - set(Fingerprint._field_defaults)  # of the metadata
_DTYPES = {"I32": "int32", "F32": "float32", "F16": "float16", "BF16": ml_dtypes.bfloat16}


def write(
    path: StrPath,
    last_token_ids: Tensor,
    consumed: ModelState,
    fingerprint: Fingerprint,
    extra: dict[str, Any] | None = None,
) -> None:
    """Writes the parts of a state, and other data of JSON types.

    Args:
        path: str or path.
        last_token_ids: int32 [B], the last token of each text, which is not consumed yet.
        consumed: `ModelState` of the tokens before the last one.
        fingerprint: `Fingerprint` of the model.
        extra: dict of JSON types.
    """
    tensors = {name: _to_numpy(x) for name, x in _named(last_token_ids, consumed).items()}
    metadata = {
        "format": "keras-rgemma state",
        "version": str(VERSION),
        **fingerprint._asdict(),
        "extra": json.dumps(extra or {}),
    }
    payload = safetensors.numpy.save(tensors, metadata=metadata)
    with destination(path) as own, new_file(own) as partial:
        partial.write_bytes(MAGIC + hashlib.sha256(payload).digest() + payload)


def read(path: StrPath) -> tuple[Tensor, ModelState, Fingerprint, dict[str, Any]]:
    """Reads the parts of a state, and the other data, from a file.

    Args:
        path: str or path.

    Returns:
        The arguments of `write` without the path: last token ids, `ModelState`, `Fingerprint`,
        dict.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is of another kind, damaged, or of another version of the format.
    """
    content = pathlib.Path(path).read_bytes()
    start = len(MAGIC) + _DIGEST_BYTES
    digest, payload = content[len(MAGIC) : start], content[start:]
    if not content.startswith(MAGIC):
        raise _refused(path, "it does not begin like one, so it is another kind of file")
    if hashlib.sha256(payload).digest() != digest:
        raise _refused(path, "its checksum is another: it is cut or damaged")
    try:
        metadata, tensors = parsed(payload)
        version = metadata.get("version")
        parts = None
        if version == str(VERSION):
            parts = (*_state(metadata, tensors), json.loads(metadata["extra"]))
    except (LookupError, ValueError, TypeError) as error:
        raise _refused(path, f"its parts do not make a state ({error})") from error
    if parts is None:
        raise _refused(
            path,
            f"its format has version {version!r}, and this is version {VERSION}: use the "
            "keras-rgemma that wrote it, or a newer one",
        )
    return parts


def _named(last_token_ids: Tensor, consumed: ModelState) -> dict[str, Tensor]:
    """Maps the names of arrays in a file to the arrays of a state."""
    named = {"last_token_ids": last_token_ids, "num_consumed": consumed.num_tokens}
    for i, layer in enumerate(consumed.layers):
        named |= {f"layers.{i}.{field}": array for field, array in layer._asdict().items()}
    return named


def parsed(payload: bytes) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Returns the metadata and the arrays in the bytes of a safetensors file."""
    size = int.from_bytes(payload[:8], "little")
    metadata = json.loads(payload[8 : 8 + size])["__metadata__"]
    tensors = {
        name: np.frombuffer(entry["data"], _DTYPES[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in safetensors.deserialize(payload)
    }
    return metadata, tensors


def _state(
    metadata: Mapping[str, str], tensors: Mapping[str, np.ndarray]
) -> tuple[Tensor, ModelState, Fingerprint]:
    """Makes the last token ids, the `ModelState` and the `Fingerprint` from the parts of a file."""
    batch_size = len(tensors["last_token_ids"])
    if any(len(array) != batch_size for array in tensors.values()):
        raise ValueError("their numbers of rows differ")
    fields = {}
    for name, array in tensors.items():
        if name.startswith("layers."):
            _, number, field = name.split(".")
            fields.setdefault(int(number), {})[field] = tensor_of(array)
    layers = [RECORDS[tuple(sorted(fields[i]))](**fields[i]) for i in range(len(fields))]
    last, consumed = (tensor_of(tensors[name]) for name in ("last_token_ids", "num_consumed"))
    # A file of the version before has no checksums.
    fields = {k: metadata[k] for k in Fingerprint._fields if k in {*metadata, *_REQUIRED}}
    fingerprint = Fingerprint(**fields)
    consumed = ModelState(consumed, tuple(layers))
    if unknown := sorted(set(tensors) - set(_named(last, consumed))):
        raise ValueError(f"unknown: {unknown}")
    return last, consumed, fingerprint


def numpy_dtype(array: Tensor) -> DTypeLike:
    """Returns the NumPy dtype of a tensor of any backend."""
    name = keras.backend.standardize_dtype(array.dtype)
    return ml_dtypes.bfloat16 if name == "bfloat16" else name


def _to_numpy(array: Tensor) -> np.ndarray:
    """Converts a tensor to NumPy in its own dtype; Keras gives bfloat16 as float32 at times."""
    return numpy_of(array).astype(numpy_dtype(array))


def _refused(path: StrPath, reason: str) -> ValueError:
    return ValueError(f"{str(path)!r} is not a state that can be used: {reason}.")
