"""The file of a state: it says what it is, is checked as a whole, and loads on any backend."""

import hashlib
import json
import pathlib

import ml_dtypes
import numpy as np
from keras import ops

from keras_rgemma import state as states
from keras_rgemma.generation.session import RGemmaState, numpy_dtype

# A file is MAGIC, the SHA-256 of what follows, and a safetensors file with the rest in its header.
MAGIC = b"RGSTATE\n"
VERSION = 1
_DIGEST_BYTES = 32
_DTYPES = {"I32": "int32", "F32": "float32", "F16": "float16", "BF16": ml_dtypes.bfloat16}


def write(path, state, extra=None):
    """Writes a state, and whatever else belongs to it.

    Args:
        path: str or path.
        state: `RGemmaState`.
        extra: dict of JSON types.
    """
    import safetensors.numpy

    from keras_rgemma.checkpoints.saving import new_file

    tensors = {name: _to_numpy(array) for name, array in _named(state).items()}
    metadata = {
        "format": "keras-rgemma state",
        "version": str(VERSION),
        **state.fingerprint._asdict(),
        "extra": json.dumps(extra or {}),
    }
    payload = safetensors.numpy.save(tensors, metadata=metadata)
    with new_file(path) as partial:
        partial.write_bytes(MAGIC + hashlib.sha256(payload).digest() + payload)


def read(path):
    """The state in a file, and what else was written with it.

    Args:
        path: str or path.

    Returns:
        A pair of `RGemmaState` and a dict.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file, damaged, or of another version of the format.
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
        state, extra = None, None
        if version == str(VERSION):
            state, extra = _state(metadata, tensors), json.loads(metadata["extra"])
    except (LookupError, ValueError, TypeError) as error:
        raise _refused(path, f"its parts do not make a state ({error})") from error
    if state is None:
        raise _refused(
            path,
            f"its format has version {version!r}, and this is version {VERSION}: use the "
            "keras-rgemma that wrote it, or a newer one",
        )
    return state, extra


def _named(state):
    """The arrays of a state by the names that they have in a file."""
    named = {"last_token_ids": state.last_token_ids, "num_consumed": state.consumed.num_tokens}
    for i, layer in enumerate(state.consumed.layers):
        named |= {f"layers.{i}.{field}": array for field, array in layer._asdict().items()}
    return named


def parsed(payload):
    """The metadata and the arrays in the bytes of a safetensors file."""
    import safetensors

    size = int.from_bytes(payload[:8], "little")
    metadata = json.loads(payload[8 : 8 + size])["__metadata__"]
    tensors = {
        name: np.frombuffer(entry["data"], _DTYPES[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in safetensors.deserialize(payload)
    }
    return metadata, tensors


def _state(metadata, tensors):
    batch_size = len(tensors["last_token_ids"])
    if any(len(array) != batch_size for array in tensors.values()):
        raise ValueError("their numbers of rows differ")
    fields = {}
    for name, array in tensors.items():
        if name.startswith("layers."):
            _, number, field = name.split(".")
            fields.setdefault(int(number), {})[field] = _to_tensor(array)
    layers = [states.RECORDS[tuple(sorted(fields[i]))](**fields[i]) for i in range(len(fields))]
    last, consumed = (_to_tensor(tensors[name]) for name in ("last_token_ids", "num_consumed"))
    fingerprint = states.Fingerprint(**{k: metadata[k] for k in states.Fingerprint._fields})
    state = RGemmaState(last, states.ModelState(consumed, tuple(layers)), fingerprint)
    if unknown := sorted(set(tensors) - set(_named(state))):
        raise ValueError(f"unknown: {unknown}")
    return state


def _to_numpy(array):
    """An array in its own dtype; Keras gives bfloat16 as float32 on some backends."""
    return ops.convert_to_numpy(array).astype(numpy_dtype(array))


def _to_tensor(array):
    return ops.convert_to_tensor(array, dtype=array.dtype.name)


def _refused(path, reason):
    return ValueError(f"{str(path)!r} is not a state that can be used: {reason}.")
