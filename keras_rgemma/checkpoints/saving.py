"""Weights of a model into the formats of others."""

import contextlib
import pathlib
import shutil
import time
import uuid

import ml_dtypes
import numpy as np
from keras import ops

from keras_rgemma.checkpoints import deepmind, deepmind_flax, deepmind_torch, huggingface, names

# What can be written, and whose names of the table it has.
TARGETS = {"transformers": "huggingface", "flax": "flax", "torch": "torch"}
_PARTIAL = ".partial"  # what the name of a folder ends with until it is complete
_DELETIONS = 100  # of what is still being written to, in so many twentieths of a second
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


class _TooLarge(ValueError):
    """A weight that a dtype cannot hold."""


def tensors(backbone, format, dtype):
    """The tensors of a backbone as a format keeps them, made one at a time.

    LoRA that is switched on is merged into what is given, and stays as it is in the model.

    Args:
        backbone: `RGemmaBackbone`.
        format: str of `names.FORMATS`.
        dtype: "float32", "float16" or "bfloat16".

    Returns:
        An iterator of pairs of a name and a NumPy array.

    Raises:
        ValueError: another dtype, or a quantized model.
    """
    if dtype not in DTYPES:
        raise ValueError(f"`dtype` must be one of {list(DTYPES)}. Received: {dtype!r}.")
    layers = {layer.path: layer for layer in backbone._flatten_layers()}
    for path, layer in layers.items():
        if getattr(layer, "quantization_mode", None):
            raise ValueError(
                f"The layer {path!r} is quantized to {layer.quantization_mode}, for which this "
                "format has no place. Write the model as it was before `quantize`."
            )
    return _tensors(backbone, layers, format, DTYPES[dtype])


def _tensors(backbone, layers, format, dtype):
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


def _cast(value, dtype, path):
    with np.errstate(over="ignore"):
        cast = value.astype(dtype)
    if dtype is np.float16 and np.isinf(cast).any() and np.isfinite(value).all():
        raise _TooLarge(
            f"The weight {path!r} holds numbers that are too large for float16. Write it in "
            "bfloat16 or float32."
        )
    return cast


def _value(path, variables, layers):
    """The value of a variable, with LoRA merged into it in float32."""
    value = ops.convert_to_numpy(variables[path].value)
    owner, _, kind = path.rpartition("/")
    if f"{owner}/lora_{kind}_a" not in variables:
        return value
    a, b = (
        ops.convert_to_numpy(variables[f"{owner}/lora_{kind}_{x}"].value).astype("float32")
        for x in "ab"
    )
    # The user may have enabled it on a layer that is Keras' own, such as the embedding.
    scale = layers[owner].lora_alpha / layers[owner].lora_rank
    return value.astype("float32") + scale * (a @ b)


def export(backbone, tokenizer, path, to, dtype=None, overwrite=False):
    """Writes a model in a format of others.

    Args:
        backbone: `RGemmaBackbone`.
        tokenizer: `RGemmaTokenizer`, or None to write no tokenizer.
        path: str or path of a folder, which must not hold anything yet.
        to: str of `TARGETS`.
        dtype: "float32", "float16" or "bfloat16"; None for the dtype of the variables.
        overwrite: bool, whether to replace what is there.

    Raises:
        FileExistsError: there is something already.
        ValueError: a quantized model, or an architecture that the format cannot express.
        ImportError: what writes the format is not installed.
        OSError: the disk is full, or cannot be written to.
    """
    dtype = dtype or backbone.dtype_policy.variable_dtype
    weights = tensors(backbone, TARGETS[to], dtype)
    with new_folder(path, overwrite) as folder:
        if to == "transformers":
            huggingface.write_json(
                folder / huggingface.CONFIG, huggingface.config_of(backbone.config, dtype)
            )
        else:
            huggingface.write_json(folder / deepmind.CONFIG, backbone.config.to_dict())
        _write_weights(folder, weights, to)
        if tokenizer is None:
            return
        (folder / huggingface.TOKENIZER).write_bytes(tokenizer.proto)
        if to == "transformers":
            huggingface.write_tokenizer_config(folder, tokenizer)


def _write_weights(folder, weights, to):
    writer = {"transformers": huggingface, "flax": deepmind_flax, "torch": deepmind_torch}[to]
    try:
        writer.write(folder, weights)
    except (ImportError, MemoryError, _TooLarge):
        raise
    except Exception as error:  # each library has classes of its own for a full disk
        raise OSError(
            f"The weights could not be written to {str(folder.parent)!r}: {error}. Nothing was "
            "left there. Check the space on the disk."
        ) from error


@contextlib.contextmanager
def new_folder(destination, overwrite=False):
    """A folder to write into that takes its name only when it is complete.

    What is killed halfway leaves a hidden `.NAME.*.partial` folder beside it and nothing under the
    name itself; while one folder takes the place of another, that one is a hidden `.NAME.*.old`.

    Args:
        destination: str or path.
        overwrite: bool, whether it may take the place of a folder that holds something.

    Yields:
        A `pathlib.Path`.

    Raises:
        FileExistsError: something is there already, or came there in the meantime.
    """
    check_free(destination, overwrite)
    destination = pathlib.Path(destination).resolve()
    with _partial_folder(destination) as partial:
        yield partial
        check_free(destination, overwrite)
        if overwrite and destination.exists():
            _exchange(partial, destination)
        else:
            if destination.exists():
                destination.rmdir()  # empty, which some systems do not rename onto
            partial.rename(destination)


@contextlib.contextmanager
def new_file(path):
    """A file to write that takes its name, from one before it, too, only when it is complete.

    Args:
        path: str or path.

    Yields:
        A `pathlib.Path` with the same endings.
    """
    path = pathlib.Path(path)
    partial = _partial_file(path, uuid.uuid4().hex[:8])
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def unlink_partial(path):
    """Deletes what a kill left of `new_file`. Nobody else may be writing there."""
    path = pathlib.Path(path)
    for partial in path.parent.glob(_partial_file(path, "?" * 8).name):
        partial.unlink(missing_ok=True)


def _partial_file(path, key):
    return path.with_name(f".{key}{_PARTIAL}.{path.name}")


@contextlib.contextmanager
def preset_folder(destination):
    """A folder to write a Keras preset into, whose files then go where KerasHub would put them.

    A new folder gets its name when it is complete. In one that holds something, files are replaced
    one by one, weights before configs, and weights of the model before are deleted.

    Args:
        destination: str or path.

    Yields:
        A `pathlib.Path`.
    """
    destination = pathlib.Path(destination).resolve()
    if destination.suffix == _PARTIAL:  # as a model saves its backbone, into its own
        yield destination
        return
    if not destination.is_dir() or not any(destination.iterdir()):
        with new_folder(destination) as partial:
            yield partial
        return
    with _partial_folder(destination) as partial:
        yield partial
        for weights in (*destination.glob("model*.weights.h5"), destination / "model.weights.json"):
            weights.unlink(missing_ok=True)  # KerasHub would prefer a file to new shards
        files = [path.relative_to(partial) for path in partial.rglob("*") if path.is_file()]
        for file in sorted(files, key=lambda file: file.suffix == ".json"):
            (destination / file).parent.mkdir(parents=True, exist_ok=True)
            (partial / file).replace(destination / file)
        shutil.rmtree(partial)


@contextlib.contextmanager
def _partial_folder(destination):
    """A hidden folder beside another, deleted after an error."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = destination.with_name(f".{destination.name}.{uuid.uuid4().hex[:8]}{_PARTIAL}")
    partial.mkdir()
    try:
        yield partial
    except BaseException:
        _delete(partial)
        raise


def _delete(folder):
    """Deletes a folder, even while threads of a writer that failed still write into it."""
    times_gone = 0
    for _ in range(_DELETIONS):
        shutil.rmtree(folder, ignore_errors=True)
        times_gone = 0 if folder.exists() else times_gone + 1
        if times_gone == 3:
            return
        time.sleep(0.05)


def check_free(destination, overwrite):
    """Raises FileExistsError if nothing may be written there, ValueError for no place at all."""
    if not str(destination).strip():
        raise ValueError("The destination is empty. Name a folder to write to.")
    destination = pathlib.Path(destination)
    if not destination.exists():
        return
    if not destination.is_dir():
        raise FileExistsError(f"{str(destination)!r} is a file. Nothing was written.")
    if not any(destination.iterdir()):
        return
    if not overwrite:
        raise FileExistsError(
            f"{str(destination)!r} is a folder that holds something. Nothing was written. Choose "
            "another place, delete it, or ask to overwrite it."
        )
    if not _is_checkpoint(destination) or pathlib.Path.cwd().is_relative_to(destination.resolve()):
        raise FileExistsError(
            f"{str(destination)!r} is more than a checkpoint, so it is not replaced. Nothing was "
            "written. Choose another place, or delete it."
        )


def _is_checkpoint(folder):
    """Whether a folder is one that `export` or `save_to_preset` writes, and nothing more."""
    known = ("*.json", "*.safetensors", "*.weights.h5", "*.pt", "tokenizer.model", "README.md")
    folders = {"assets", deepmind_flax.FOLDER}
    return all(
        path.name in folders if path.is_dir() else any(map(path.match, known))
        for path in folder.iterdir()
    )


def _exchange(partial, destination):
    old = partial.with_suffix(".old")
    destination.rename(old)
    try:
        partial.rename(destination)
    except OSError:  # somebody else's came there
        if not destination.exists():
            old.rename(destination)
        raise
    shutil.rmtree(old)
