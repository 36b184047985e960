"""Reads and writes DeepMind's Flax tree in an Orbax folder, as Kaggle publishes it."""

import json
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from keras_rgemma.checkpoints.deepmind import check_sizes, only
from keras_rgemma.types import StrPath, Tree

FOLDER = "params"  # the name that this package gives it; Kaggle names the folder after the variant
# One of these lies in every Orbax folder, whether it uses OCDBT or a folder for each tensor.
MARKS = ("_METADATA", "manifest.ocdbt")
# Files are compressed: weights by less than half, biases that are all zero by much more.
_COMPRESSION = 64


def find(path: StrPath) -> pathlib.Path | None:
    """Finds the Orbax folder at a path or in the folder at a path; returns None if none.

    Raises:
        ValueError: the path holds several Orbax folders.
    """
    path = pathlib.Path(path)
    if not path.is_dir():
        return None
    if _is_orbax(path):
        return path
    return only(path, (child for child in path.iterdir() if child.is_dir() and _is_orbax(child)))


def _is_orbax(folder: pathlib.Path) -> bool:
    return any((folder / mark).is_file() for mark in MARKS)


def write(folder: pathlib.Path, tensors: Iterable[tuple[str, np.ndarray]]) -> None:
    """Writes tensors as DeepMind's `save_parameters` does: a tree below `params`, with Orbax.

    Args:
        folder: `pathlib.Path` of the folder around the Orbax folder.
        tensors: iterable of pairs of a name and a NumPy array.

    Raises:
        ImportError: orbax-checkpoint is not installed.
    """
    tree = {}
    for name, array in tensors:
        *path, last = name.split("/")
        branch = tree
        for key in path:
            branch = branch.setdefault(key, {})
        branch[last] = array
    _checkpointer().save((folder / FOLDER).absolute(), {"params": tree})


class OrbaxFolder:
    """Reads the tensors of an Orbax folder: a `TensorSource`.

    Args:
        folder: str or path.

    Raises:
        ValueError: the folder is broken.
        ImportError: orbax-checkpoint is not installed.
    """

    format = "flax"
    folder: pathlib.Path
    copies: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, np.dtype]

    def __init__(self, folder: StrPath) -> None:
        self.folder = pathlib.Path(folder).absolute()
        self.copies = {}
        self._checkpointer = _checkpointer()
        self._hides_gaps = not _reports_missing_data(self.folder)
        try:
            tree = self._checkpointer.metadata(self.folder).item_metadata.tree
        except Exception as error:  # of many classes, which Orbax does not document
            raise self._broken(error) from error
        self._paths, self.shapes, self.dtypes = {}, {}, {}
        root = ("params",) if set(tree) == {"params"} else ()
        for path, array in _leaves(tree):
            if not hasattr(array, "shape"):
                raise self._broken(f"It holds {type(array).__name__} at {'/'.join(path)!r}.")
            name = "/".join(path[len(root) :])
            self._paths[name] = path
            self.shapes[name] = tuple(array.shape)
            self.dtypes[name] = np.dtype(array.dtype)
        files = (file for file in self.folder.rglob("*") if file.is_file())
        check_sizes(self.folder, self, _COMPRESSION * sum(file.stat().st_size for file in files))

    def read(self, name: str) -> np.ndarray:
        """Reads a tensor: see `TensorSource.read`."""
        import orbax.checkpoint

        as_numpy = orbax.checkpoint.RestoreArgs(restore_type=np.ndarray)
        one = orbax.checkpoint.args.PyTreeRestore(
            item=_nested(self._paths[name], 0),
            restore_args=_nested(self._paths[name], as_numpy),
            partial_restore=True,
        )
        try:
            array = self._checkpointer.restore(self.folder, args=one)
        except Exception as error:  # as above
            raise self._broken(error, name) from error
        for key in self._paths[name]:
            array = array[key]
        is_bias = array.ndim < 2 or name.endswith(("/b", "/bias"))
        if self._hides_gaps and not is_bias and not array.any():
            raise self._broken("It is zero throughout, as where files are missing.", name)
        return array

    def _broken(self, error: object, name: str | None = None) -> ValueError:
        place = f"the tensor {name!r} in {str(self.folder)!r}" if name else f"{str(self.folder)!r}"
        return ValueError(f"Orbax cannot read {place}: {error} Fetch the folder again.")


def _reports_missing_data(folder: pathlib.Path) -> bool:
    """Checks whether Orbax wrote every array whole; in older folders it reads gaps as zeros."""
    try:
        metadata = json.loads((folder / MARKS[0]).read_text(encoding="utf-8"))
        return bool(metadata["store_array_data_equal_to_fill_value"])
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _checkpointer() -> Any:
    if keras.config.backend() != "jax" and "jax" not in sys.modules:
        # Orbax starts JAX, which would take most of an accelerator's memory from the backend.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        import orbax.checkpoint
    except ImportError as error:
        raise ImportError(
            "Weights in an Orbax folder are read and written with orbax-checkpoint. Install it "
            "with `pip install orbax-checkpoint jax`."
        ) from error
    return orbax.checkpoint.Checkpointer(orbax.checkpoint.PyTreeCheckpointHandler())


def _leaves(tree: Tree, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yields a pair of a path, tuple of keys, and a leaf for each leaf of nested dicts."""
    if not isinstance(tree, dict):
        yield path, tree
        return
    for key, branch in tree.items():
        yield from _leaves(branch, (*path, key))


def _nested(path: Sequence[str], value: Any) -> Any:
    """Wraps a value in nested dicts, one a key of the path."""
    for key in reversed(path):
        value = {key: value}
    return value
