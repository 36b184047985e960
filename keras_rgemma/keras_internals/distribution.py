"""Says which rows Keras could not divide among devices."""

import contextlib
import traceback
from collections.abc import Iterator
from typing import TypeAlias

import keras

# The distributions that Keras has.
Distribution: TypeAlias = keras.distribution.DataParallel | keras.distribution.ModelParallel


class IndivisibleRowsError(ValueError):
    """Says that the data axis of a mesh does not divide the rows of a batch.

    Args:
        rows: int, of the batch.
        distribution: `keras.distribution.Distribution`.
    """

    def __init__(self, rows: int, distribution: Distribution) -> None:
        axis, mesh = distribution.batch_dim_name, distribution.device_mesh
        count = mesh.shape[tuple(mesh.axis_names).index(axis)]
        super().__init__(
            f"The axis {axis!r} of the mesh has {count} devices, which do not divide a batch of "
            f"{rows} rows. Use a `batch_size` that is a multiple of {count} and a number of rows "
            "that is one, too (a last batch that is smaller counts: leave its rows out, as tf.data "
            f"does with `drop_remainder=True`), or a mesh with fewer devices along {axis!r}."
        )


@contextlib.contextmanager
def dividing_rows() -> Iterator[None]:
    """Raises an `IndivisibleRowsError` where Keras cannot divide a batch that is read inside.

    JAX names the array and its sharding, from which nobody sees that `batch_size` is to blame.
    """
    try:
        yield
    except ValueError as error:
        rows = _refused_rows(error)
        if rows is None:
            raise
        raise IndivisibleRowsError(rows, keras.distribution.distribution()) from error


def _refused_rows(error: BaseException) -> int | None:
    """Returns the rows of the batch that Keras was dividing when it raised, an int, or None."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        is_keras = frame.f_globals.get("__name__") == "keras.src.backend.jax.distribution_lib"
        if is_keras and frame.f_code.co_name == "distribute_data_input":
            return len(frame.f_locals["per_process_batch"])
    return None
