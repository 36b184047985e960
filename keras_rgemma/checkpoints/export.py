"""Writes a model in the formats of Hugging Face and DeepMind."""

import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
import ml_dtypes
import numpy as np
from keras import ops
from numpy.typing import DTypeLike

from keras_rgemma.checkpoints import (
    deepmind,
    deepmind_flax,
    deepmind_torch,
    huggingface,
    names,
    safetensors,
)
from keras_rgemma.files import new_folder, write_json
from keras_rgemma.keras_internals.layers import layers_of
from keras_rgemma.types import StrPath

# The formats that can be written, each with its column in the table of names.
TARGETS = {"transformers": "huggingface", "flax": "flax", "torch": "torch"}
DTYPES: dict[str, DTypeLike] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}


class _TooLarge(ValueError):
    """Reports a weight that a dtype cannot hold."""


def tensors(backbone: Any, format: str, dtype: str) -> Iterator[tuple[str, np.ndarray]]:
    """Makes the tensors of a backbone for a format, one at a time.

    LoRA that is enabled is merged into the tensors; the model keeps its LoRA.

    Args:
        backbone: `RGemmaBackbone`.
        format: str of `names.FORMATS`.
        dtype: "float32", "float16" or "bfloat16".

    Returns:
        An iterator of pairs of a name and a NumPy array.

    Raises:
        ValueError: the dtype is another, or the model is quantized.
    """
    if dtype not in DTYPES:
        raise ValueError(f"`dtype` must be one of {list(DTYPES)}. Received: {dtype!r}.")
    layers = {layer.path: layer for layer in layers_of(backbone)}
    for path, layer in layers.items():
        if getattr(layer, "quantization_mode", None):
            raise ValueError(
                f"The layer {path!r} is quantized to {layer.quantization_mode}, for which this "
                "format has no place. Write the model as it was before `quantize`."
            )
    return _tensors(backbone, layers, format, DTYPES[dtype])


def _tensors(
    backbone: Any, layers: Mapping[str, Any], format: str, dtype: DTypeLike
) -> Iterator[tuple[str, np.ndarray]]:
    variables = {variable.path: variable for variable in backbone.variables}
    for name, (_, weights) in names.tensors(backbone.config, format).items():
        parts = [
            weight.place(format).transform.to_file(
                _cast(_value(weight.path, variables, layers), dtype, weight.path)
            )
            for weight in weights
        ]
        is_stacked = weights[0].place(format).part is not None
        yield name, np.stack(parts) if is_stacked else np.ascontiguousarray(parts[0])


def _cast(value: np.ndarray, dtype: DTypeLike, path: str) -> np.ndarray:
    """Converts the value of a weight to a dtype that can hold all numbers of the value."""
    with np.errstate(over="ignore"):
        cast = value.astype(dtype)
    if dtype is np.float16 and np.isinf(cast).any() and np.isfinite(value).all():
        raise _TooLarge(
            f"The weight {path!r} holds numbers that are too large for float16. Write it in "
            "bfloat16 or float32."
        )
    return cast


def _value(
    path: str, variables: Mapping[str, keras.Variable], layers: Mapping[str, Any]
) -> np.ndarray:
    """Returns the value of a variable, with LoRA merged into it in float32."""
    value = ops.convert_to_numpy(variables[path].value)
    owner, _, kind = path.rpartition("/")
    if f"{owner}/lora_{kind}_a" not in variables:
        return value
    a, b = (
        ops.convert_to_numpy(variables[f"{owner}/lora_{kind}_{x}"].value).astype("float32")
        for x in "ab"
    )
    # LoRA may be enabled on a layer of Keras' own class, such as the embedding.
    scale = layers[owner].lora_alpha / layers[owner].lora_rank
    return value.astype("float32") + scale * (a @ b)


def export(
    backbone: Any,
    tokenizer: Any,
    path: StrPath,
    to: str,
    dtype: str | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a model in a format of Hugging Face or DeepMind.

    Args:
        backbone: `RGemmaBackbone`.
        tokenizer: `RGemmaTokenizer`, or None to write no tokenizer.
        path: str or path of a new or empty folder.
        to: str of `TARGETS`.
        dtype: "float32", "float16" or "bfloat16"; None for the dtype of the variables.
        overwrite: bool, whether to replace a checkpoint in the folder.

    Raises:
        FileExistsError: the folder holds something already.
        ValueError: the model is quantized, or the format cannot express its architecture.
        ImportError: the library that writes the format is not installed.
        OSError: the disk is full, or cannot be written to.
    """
    dtype = dtype or backbone.dtype_policy.variable_dtype
    weights = tensors(backbone, TARGETS[to], dtype)
    with new_folder(path, overwrite) as folder:
        if to == "transformers":
            write_json(folder / huggingface.CONFIG, huggingface.config_of(backbone.config, dtype))
        else:
            write_json(folder / deepmind.CONFIG, backbone.config.to_dict())
        _write_weights(folder, weights, to)
        if tokenizer is None:
            return
        (folder / huggingface.TOKENIZER).write_bytes(tokenizer.proto)
        if to == "transformers":
            huggingface.write_tokenizer_config(folder, tokenizer)


def _write_weights(
    folder: pathlib.Path, weights: Iterable[tuple[str, np.ndarray]], to: str
) -> None:
    writer = {"transformers": safetensors, "flax": deepmind_flax, "torch": deepmind_torch}[to]
    try:
        writer.write(folder, weights)
    except (ImportError, MemoryError, _TooLarge):
        raise
    except Exception as error:  # each library has classes of its own for a full disk
        raise OSError(
            f"The weights could not be written to {str(folder.parent)!r}: {error}. Nothing was "
            "left there. Check the space on the disk."
        ) from error
