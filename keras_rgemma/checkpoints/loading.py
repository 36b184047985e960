"""Loads the weights of a checkpoint into a model that was created without values."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import keras
import numpy as np
import tqdm.auto

from keras_rgemma.checkpoints import names
from keras_rgemma.checkpoints.names import Weight
from keras_rgemma.checkpoints.rounding import Rounding
from keras_rgemma.checkpoints.source import TensorSource
from keras_rgemma.checkpoints.tensors import give
from keras_rgemma.config import RGemmaConfig
from keras_rgemma.keras_internals import variables as internals

_Model = TypeVar("_Model")

_CACHED = 1 << 18  # elements that stay in a processor's cache
CHUNK = 1 << 24  # elements compared in one go, so that temporaries stay small
_LISTED = 8  # names in one error
_WORTH_A_BAR = 1 << 27  # bytes


def load(
    config: RGemmaConfig,
    source: TensorSource,
    make: Callable[[], keras.Model],
    rounding: Rounding | None = None,
) -> keras.Model:
    """Makes a model and gives each variable its value from a checkpoint, one tensor at a time.

    The variables have no values before: neither random numbers nor zeros are made, and the memory
    beside the model is that of the largest tensor.

    Args:
        config: `RGemmaConfig`, compared with the weights before the model is made.
        source: `TensorSource` of the checkpoint.
        make: function that returns an `RGemmaBackbone` of that architecture.
        rounding: `rounding.Rounding` that made it, or None.

    Returns:
        The `RGemmaBackbone`.

    Raises:
        ValueError: tensors that are missing, unknown, of another shape, or not finite.
    """
    if config.num_layers > len(source.shapes):
        raise ValueError(
            f"The config asks for {config.num_layers} layers, but the weights hold "
            f"{len(source.shapes)} tensors in all. Check that they belong together."
        )
    tensors = names.tensors(config, source.format)
    check(tensors, source)
    model = build_uninitialized(make)
    waiting = {variable.path: variable for variable in model.variables}
    for name in _with_progress(tensors, source):
        _, weights = tensors[name]
        array = source.read(name)
        check_finite(name, array)
        for copy, original in source.copies.items():
            if original == name and copy in source.shapes:
                _check_copy(source, copy, name, array)
        for weight in weights:
            place = weight.place(source.format)
            part = array if place.part is None else array[place.part]
            path = weight.path
            dtype = rounding.variable_dtype(path) if rounding else waiting[path].dtype
            if dtype == "float16" != array.dtype.name:
                check_finite(name, in_half_precision(part))
            value = place.transform.from_file(part)
            values = rounding.rounded(path, value) if rounding else {path: value}
            for path, value in values.items():
                give(waiting.pop(path), value)
    for variable in waiting.values():
        if not internals.has_value(variable):  # such as the seeds of dropout
            internals.initialize(variable)
    if rounding:
        rounding.lay_out(model)
    return model


def _with_progress(
    tensors: Mapping[str, tuple[tuple[int, ...], list[Weight]]], source: TensorSource
) -> Iterator[str]:
    """Yields the names of tensors, and shows a progress bar for large checkpoints."""
    sizes = {
        name: math.prod(shape) * source.dtypes[name].itemsize
        for name, (shape, _) in tensors.items()
    }
    total = sum(sizes.values())
    with tqdm.auto.tqdm(
        total=total,
        desc="Loading weights",
        unit="B",
        unit_scale=True,
        disable=total < _WORTH_A_BAR,
    ) as bar:
        for count, (name, size) in enumerate(sizes.items(), start=1):
            yield name
            bar.set_postfix_str(f"{count}/{len(sizes)} tensors", refresh=False)
            bar.update(size)


def build_uninitialized(make: Callable[[], _Model]) -> _Model:
    """Calls `make` and returns its model with variables that wait for their first values."""
    with internals.uninitialized_variables():
        return make()


def check(
    tensors: Mapping[str, tuple[tuple[int, ...], list[Weight]]], source: TensorSource
) -> None:
    """Compares the tensors of a checkpoint with those of the architecture, before one is read.

    Args:
        tensors: dict, as of `names.tensors`.
        source: `TensorSource` of the checkpoint.

    Raises:
        ValueError: tensors are missing, unknown or of another shape; the message names them.
    """
    shapes = {name: shape for name, (shape, _) in tensors.items()}
    shapes |= {copy: shapes[name] for copy, name in source.copies.items()}
    if faults := differences(shapes, source.shapes, optional=source.copies):
        raise ValueError(
            f"The weights do not fit the config. Tensors {faults}. Check that config "
            "and weights belong together and that every file is complete."
        )


def differences(
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    optional: Iterable[str] = (),
) -> str:
    """Names the arrays that are missing, unknown or of another shape.

    Args:
        expected, found: dicts of names to shapes.
        optional: container of names that may be missing.

    Returns:
        str, empty if there are none.
    """
    missing = sorted(set(expected) - set(found) - set(optional))
    unknown = sorted(set(found) - set(expected))
    wrong = [
        f"{name} {found[name]} (expected {shape})"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    kinds = (("missing", missing), ("unknown", unknown), ("of another shape", wrong))
    return "; ".join(f"{kind}: {_list(entries)}" for kind, entries in kinds if entries)


def _list(entries: Sequence[str]) -> str:
    more = f" and {len(entries) - _LISTED} more" if len(entries) > _LISTED else ""
    return ", ".join(entries[:_LISTED]) + more


def check_finite(name: str, array: np.ndarray) -> None:
    """Raises ValueError if an array of floating-point numbers holds NaN or infinity."""
    # Read as whole numbers, infinity and NaN are the largest: of the positive ones among signed
    # integers, of the negative ones among unsigned. So no temporary array is made.
    infinities = np.array([np.inf, -np.inf], array.dtype)
    kinds = [f"{sign}{array.dtype.itemsize}" for sign in "iu"]
    limits = [infinity.view(kind) for kind, infinity in zip(kinds, infinities, strict=True)]
    flat = array.reshape(-1, order="A")
    for start in range(0, flat.size, _CACHED):  # read from memory once
        part = flat[start : start + _CACHED]
        if any(part.view(x).max() >= limit for x, limit in zip(kinds, limits, strict=True)):
            raise not_finite(name, array.dtype.name)


def not_finite(name: str, dtype: str) -> ValueError:
    """Makes the error for a tensor that holds NaN or infinity."""
    hint = "Or it is too large for float16: use bfloat16." if dtype == "float16" else ""
    return ValueError(
        f"The tensor {name!r} holds NaN or infinity in {dtype}: the checkpoint is broken. Fetch it "
        f"again. {hint}".strip()
    )


def in_half_precision(array: np.ndarray) -> np.ndarray:
    """Converts an array to float16, with infinity for numbers that are too large."""
    with np.errstate(over="ignore"):
        return array.astype("float16")


def _check_copy(source: TensorSource, copy: str, name: str, array: np.ndarray) -> None:
    """Compares a copy with the tensor that it must repeat, some rows at a time."""
    rows = max(1, CHUNK // max(1, array[0].size))
    for start in range(0, len(array), rows):
        part = array[start : start + rows]
        other = source.read(copy, rows=slice(start, start + len(part)))
        if part.tobytes() != other.tobytes():
            raise ValueError(
                f"The tensor {copy!r} differs from {name!r}. This architecture has one matrix for "
                "embedding and logits, so the checkpoint cannot be loaded without changing what "
                f"it says. If the copy is stale, delete {copy!r} from it."
            )
