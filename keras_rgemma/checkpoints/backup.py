"""What `keras.callbacks.BackupAndRestore` needs to survive a kill at any moment.

It writes the weights, then, into a file of its own, the epoch to go on with; and it deletes both
one after the other. Here the weights carry that epoch, and before training the other file is made
to say the same. Where the weights were deleted already, at the end, training begins anew.
"""

import json

import h5py
import keras

from keras_rgemma.files import unlink_partial
from keras_rgemma.keras_internals.training import backup_files, backup_progress

_PROGRESS = "training_metadata"


def backups(callbacks):
    """The `BackupAndRestore` of local folders among callbacks, a tuple."""
    return tuple(
        callback
        for callback in callbacks
        if isinstance(callback, keras.callbacks.BackupAndRestore)
        and "://" not in str(callback.backup_dir)
    )


def mend(backup):
    """Makes the files of a backup agree, as they do not after a kill between their writing."""
    weights, progress = backup_files(backup)
    unlink_partial(weights)
    if not weights.exists():
        progress.unlink(missing_ok=True)
        return
    try:
        with h5py.File(weights) as file:
            said = file.attrs.get(_PROGRESS)
    except OSError:  # `BackupAndRestore` knows what to do with broken weights
        return
    if said is not None:
        progress.write_text(said)


def sign(file, backup):
    """Writes into a file of weights where training goes on from them."""
    with h5py.File(file, "r+") as weights:
        weights.attrs[_PROGRESS] = json.dumps(backup_progress(backup))
