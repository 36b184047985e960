"""Opens files of weights and maps their groups to layers."""

import contextlib
import pathlib
import zipfile
from collections.abc import Iterator
from typing import Any

import h5py
from keras.src.saving import saving_lib

from keras_rgemma.types import StrPath


def saved_layers(file: h5py.File, class_name: str) -> set[str]:
    """Names the groups of the layers of one class in a file of a functional model's weights.

    Args:
        file: `h5py.File`.
        class_name: str, in snake case, as Keras writes it: "residual_block" for `ResidualBlock`.

    Returns:
        set of str.
    """
    names = file.get("layers", ())
    return {name for name in names if name.rstrip("0123456789").rstrip("_") == class_name}


@contextlib.contextmanager
def open_weights(path: StrPath) -> Iterator[Any]:
    """Opens a file of weights as `keras.Model.load_weights` does; yields None for other files.

    Args:
        path: str or path that ends in ".weights.h5", ".weights.json" or ".keras".
    """
    with contextlib.ExitStack() as stack:
        store, name = None, str(path)
        if pathlib.Path(path).is_file():
            if name.endswith("weights.h5"):
                store = saving_lib.H5IOStore(path, mode="r")
            elif name.endswith("weights.json"):
                store = saving_lib.ShardedH5IOStore(path, mode="r")
            elif name.endswith(".keras"):
                archive = stack.enter_context(zipfile.ZipFile(path))
                store = saving_lib.H5IOStore("model.weights.h5", archive=archive, mode="r")
        if store is not None:
            stack.callback(store.close)
        yield store


def h5_files(store: Any) -> Iterator[h5py.File]:
    """Iterates over the `h5py.File`s of the store of `load_own_variables`.

    Args:
        store: the argument of `keras.Layer.load_own_variables` while a file is loaded.
    """
    sharding = getattr(store, "sharding_config", None)
    if sharding is None:
        file = getattr(store, "h5_file", None)
        if file is not None:
            yield file
        return
    names = set()
    for shards in sharding["weight_map"].values():
        names |= {shards} if isinstance(shards, str) else set(shards)
    for name in sorted(names):
        with h5py.File(store.path.with_name(name), "r") as file:
            yield file


def saved_block(group: str, class_name: str) -> tuple[int, list[str]] | None:
    """Finds the layer of a functional model for a group in a file of weights.

    Args:
        group: str, the name of a group, such as "layers/residual_block_2/mlp_block/vars".
        class_name: str, in snake case, the class of the layer: "residual_block".

    Returns:
        The index of the layer among those of its class, and the rest of the name as a list of str
        ("mlp_block", "vars"); or None if the group belongs to no layer of the class.
    """
    parts = group.split("/")
    for i, part in enumerate(parts[1:], start=1):
        name, _, number = part.rpartition("_")
        if parts[i - 1] != "layers":
            continue
        if part == class_name:
            return 0, parts[i + 1 :]
        if name == class_name and number.isdecimal():
            return int(number), parts[i + 1 :]
    return None


def saved_optimizer_size(store: Any) -> int:
    """Counts the variables of a model's optimizer in the store of its weights.

    Args:
        store: the argument of `load_own_variables` of the model, which may be part of another one;
            or what `open_weights` yields, for the model that was saved.
    """
    path = "/".join(filter(None, [store._h5_entry_path, "optimizer/vars"]))
    return sum(len(file.get(path, ())) for file in h5_files(store))
