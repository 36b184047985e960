"""Writes files and folders that are complete or not there, and JSON."""

import contextlib
import json
import pathlib
import reprlib
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from keras_rgemma.types import StrPath

_PARTIAL = ".partial"  # the ending of a folder's name until the folder is complete
_DELETIONS = 100  # attempts on a folder that is still written to, a twentieth of a second apart
_TIMES_GONE = 10  # in a row, after which nobody is taken to write to a folder any more
# The files and folders that this package writes: a folder of these alone may be replaced.
_REPLACEABLE_FILES = (
    "*.json",
    "*.safetensors",
    "*.weights.h5",
    "*.pt",
    "tokenizer.model",
    "README.md",
)
_REPLACEABLE_FOLDERS = ("assets", "params")


def write_json(path: pathlib.Path, contents: Mapping[str, Any]) -> None:
    """Writes a dict as a JSON file."""
    path.write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")


def read_json(path: StrPath) -> dict[str, Any]:
    """Reads the dict in a JSON file.

    Raises:
        ValueError: the file cannot be read, or holds no dict.
    """
    try:
        contents = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{str(path)!r} cannot be read as JSON: {error}. Correct the file, or fetch it again."
        ) from error
    if not isinstance(contents, dict):
        raise ValueError(
            f"{str(path)!r} must hold a JSON object. Received: {reprlib.repr(contents)}. Correct "
            "the file, or fetch it again."
        )
    return contents


@contextlib.contextmanager
def new_folder(destination: StrPath, overwrite: bool = False) -> Iterator[pathlib.Path]:
    """Opens a folder to write into that takes its name only when it is complete.

    A process that is killed halfway leaves a hidden `.NAME.*.partial` folder beside the destination
    and nothing under the name itself; while one folder takes the place of another, the old one is
    a hidden `.NAME.*.old`.

    Args:
        destination: str or path.
        overwrite: bool, whether the new folder may replace one that holds something.

    Yields:
        A `pathlib.Path`.

    Raises:
        FileExistsError: the destination holds something, now or at the end.
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
def new_file(path: StrPath) -> Iterator[pathlib.Path]:
    """Opens a file to write that takes its name only when it is complete.

    An older file of that name stays until then.

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


def unlink_partial(path: StrPath) -> None:
    """Deletes the partial files that a killed `new_file` left. Nobody else may be writing there."""
    path = pathlib.Path(path)
    for partial in path.parent.glob(_partial_file(path, "?" * 8).name):
        partial.unlink(missing_ok=True)


def _partial_file(path: pathlib.Path, key: str) -> pathlib.Path:
    return path.with_name(f".{key}{_PARTIAL}.{path.name}")


@contextlib.contextmanager
def preset_folder(destination: StrPath) -> Iterator[pathlib.Path]:
    """Opens a folder to write a Keras preset into, whose files then go to the destination.

    A new folder gets its name when it is complete. In a folder that holds something, files are
    replaced one by one, weights before configs, and the old weights are deleted.

    Args:
        destination: str or path.

    Yields:
        A `pathlib.Path`.
    """
    destination = pathlib.Path(destination).resolve()
    if destination.suffix == _PARTIAL:  # the folder of a model, into which it saves its backbone
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
def _partial_folder(destination: pathlib.Path) -> Iterator[pathlib.Path]:
    """Makes a hidden folder beside another, and deletes it after an error."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = destination.with_name(f".{destination.name}.{uuid.uuid4().hex[:8]}{_PARTIAL}")
    partial.mkdir()
    try:
        yield partial
    except BaseException:
        _delete(partial)
        raise


def _delete(folder: pathlib.Path) -> None:
    """Deletes a folder, even while threads of a writer that failed still write into it."""
    times_gone = 0
    for _ in range(_DELETIONS):
        shutil.rmtree(folder, ignore_errors=True)
        times_gone = 0 if folder.exists() else times_gone + 1
        if times_gone == _TIMES_GONE:
            return
        time.sleep(0.05)


def check_free(destination: StrPath, overwrite: bool) -> None:
    """Raises FileExistsError if a destination may not be written to, ValueError if it is empty."""
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


def _is_checkpoint(folder: pathlib.Path) -> bool:
    """Checks whether a folder holds only files that `export` or `save_to_preset` writes."""
    return all(
        path.name in _REPLACEABLE_FOLDERS
        if path.is_dir()
        else any(map(path.match, _REPLACEABLE_FILES))
        for path in folder.iterdir()
    )


def _exchange(partial: pathlib.Path, destination: pathlib.Path) -> None:
    """Puts a complete folder in the place of another, and deletes that one."""
    old = partial.with_suffix(".old")
    destination.rename(old)
    try:
        partial.rename(destination)
    except OSError:  # another process has put a folder there
        if not destination.exists():
            old.rename(destination)
        raise
    shutil.rmtree(old)
