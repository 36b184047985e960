"""Reaches the private state of `keras.Model.fit`: progress, backups, and weights on JAX."""

import pathlib
from collections.abc import Mapping
from typing import Any

import keras
from keras.src.utils.tracking import DotNotTrackScope


def nested_evaluation(kwargs: Mapping[str, Any]) -> bool:
    """Returns whether `fit` calls `evaluate` with these arguments, for its validation data."""
    return bool(kwargs.get("_use_cached_eval_dataset", False))


def forget_initial_epoch(model: Any) -> None:
    """Lets the next `fit` begin at its own `initial_epoch` instead of the epoch of a backup."""
    model._initial_epoch = None


def sync_weights(model: keras.Model) -> None:
    """Writes the weights into their variables in a callback of `fit`.

    On JAX, Keras keeps the weights elsewhere between the batches of an epoch. On other backends the
    variables are current.
    """
    getattr(model, "jax_state_sync", lambda: None)()


def backup_files(backup: keras.callbacks.BackupAndRestore) -> tuple[pathlib.Path, pathlib.Path]:
    """Returns the files of a `BackupAndRestore`, weights and progress: a pair of paths.

    Args:
        backup: `keras.callbacks.BackupAndRestore` of a local folder.
    """
    return pathlib.Path(backup._weights_path), pathlib.Path(backup._training_metadata_path)


def backup_progress(backup: keras.callbacks.BackupAndRestore) -> dict[str, int]:
    """Returns the contents of a backup's progress file, a dict of epoch and batch."""
    return {"epoch": backup._current_epoch, "batch": backup._last_batch_seen}


def report_loss_in_float32(model: Any) -> None:
    """Lets a model that was just compiled keep the loss of a batch, and add them up, in float32.

    Keras does both in floatx: in bfloat16 the mean of some hundred batches is wrong.
    """
    if model._compile_loss is not None:
        model._compile_loss._dtype = "float32"
    with DotNotTrackScope():
        model._loss_tracker = keras.metrics.Mean(name="loss", dtype="float32")
