"""Makes the files of `keras.callbacks.BackupAndRestore` agree after a kill at any moment.

The callback writes the weights, then the epoch to continue from into another file; at the end it
deletes both files, one after the other. Here the file of weights carries that epoch, too, and
before training the other file is rewritten from it. If the weights were deleted already, training
begins anew.
"""

import json
from collections.abc import Iterable

import h5py
import keras

from keras_rgemma.files import unlink_partial
from keras_rgemma.keras_internals.training import backup_files, backup_progress
from keras_rgemma.types import StrPath

_PROGRESS = "training_metadata"


def backups(
    callbacks: Iterable[keras.callbacks.Callback],
) -> tuple[keras.callbacks.BackupAndRestore, ...]:
    """Returns the `BackupAndRestore`s of local folders among callbacks, a tuple."""
    return tuple(
        callback
        for callback in callbacks
        if isinstance(callback, keras.callbacks.BackupAndRestore)
        and "://" not in str(callback.backup_dir)
    )


def mend(backup: keras.callbacks.BackupAndRestore) -> None:
    """Rewrites the progress file of a backup from its weights, after a kill between the two."""
    weights, progress = backup_files(backup)
    unlink_partial(weights)
    if not weights.exists():
        progress.unlink(missing_ok=True)
        return
    try:
        with h5py.File(weights) as file:
            text = file.attrs.get(_PROGRESS)
    except OSError:  # `BackupAndRestore` handles broken weights itself
        return
    if text is not None:
        progress.write_text(text)


def sign(file: StrPath, backup: keras.callbacks.BackupAndRestore) -> None:
    """Writes the progress of training into a file of weights."""
    with h5py.File(file, "r+") as weights:
        weights.attrs[_PROGRESS] = json.dumps(backup_progress(backup))
