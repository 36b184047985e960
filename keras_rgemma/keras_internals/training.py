"""What `keras.Model.fit` keeps for itself: progress, backups, and weights on JAX."""

import pathlib


def nested_evaluation(kwargs):
    """True if `evaluate` got these arguments from `fit`, for its validation data."""
    return bool(kwargs.get("_use_cached_eval_dataset", False))


def forget_initial_epoch(model):
    """Has the next `fit` begin at its own `initial_epoch` instead of the epoch of a backup."""
    model._initial_epoch = None


def sync_weights(model):
    """Writes the weights back into their variables in a callback of `fit`.

    On JAX, Keras keeps them elsewhere between the batches of an epoch. On the others this does
    nothing.
    """
    getattr(model, "jax_state_sync", lambda: None)()


def backup_files(backup):
    """The files of a `BackupAndRestore`: the weights and the progress, a pair of paths.

    Args:
        backup: `keras.callbacks.BackupAndRestore` of a local folder.
    """
    return pathlib.Path(backup._weights_path), pathlib.Path(backup._training_metadata_path)


def backup_progress(backup):
    """Where training goes on from a backup: what its file of progress says, a dict."""
    return {"epoch": backup._current_epoch, "batch": backup._last_batch_seen}
