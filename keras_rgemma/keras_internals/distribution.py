"""Reads what Keras does with batches under a distribution."""

import traceback


def refused_rows(error):
    """Returns the number of rows of the batch that Keras could not divide among devices.

    Args:
        error: exception that was raised in `fit`, `evaluate` or `predict`.

    Returns:
        int, or None if the exception came from elsewhere.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        is_keras = frame.f_globals.get("__name__") == "keras.src.backend.jax.distribution_lib"
        if is_keras and frame.f_code.co_name == "distribute_data_input":
            return len(frame.f_locals["per_process_batch"])
    return None
