"""Gives each of several processes its own rows of a batch, or refuses to train apart."""

import math
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np

from keras_rgemma.backend import backend_module
from keras_rgemma.keras_internals.data_adapters import BatchesAdapter
from keras_rgemma.keras_internals.distribution import IndivisibleRowsError
from keras_rgemma.sharding.entries import axis_size
from keras_rgemma.text.batches import BATCH_SIZE

_PAGE = "See docs/several_processes.md."


def process_count() -> int:
    """Returns the number of processes that compute together, int."""
    return backend_module("keras_rgemma.sharding").process_count()


def check(method: str) -> None:
    """Checks that the processes of a job train or evaluate one model together.

    Where they know nothing of each other, each may evaluate for itself.

    Args:
        method: str, the name of the method that was called.

    Raises:
        RuntimeError: they cannot; each would train a model of its own.
    """
    count, backend = process_count(), keras.config.backend()
    is_together = backend == "jax" and keras.distribution.distribution() is not None
    if count == 1 or not (is_together or method == "fit"):
        return
    if backend == "torch":
        raise RuntimeError(
            f"`{method}` was called in one of {count} processes (torchrun, torch.distributed), "
            "each of which would train apart: Keras 3 sends no gradients between processes on "
            "PyTorch. Wrap the model in torch.nn.parallel.DistributedDataParallel in a loop of "
            f"your own, or set KERAS_BACKEND=jax and a keras.distribution. {_PAGE}"
        )
    if backend == "tensorflow":
        raise RuntimeError(
            f"`{method}` was called in one of {count} processes (MultiWorkerMirroredStrategy, "
            "TF_CONFIG). Keras 3 does not train with that strategy (keras-team/keras#20585). Use "
            "tf.distribute.MirroredStrategy on one host, or set KERAS_BACKEND=jax and a "
            f"keras.distribution. {_PAGE}"
        )
    if not is_together:
        raise RuntimeError(
            f"`{method}` was called in one of {count} processes without a keras.distribution: each "
            "would train apart. Call keras.distribution.set_distribution(...) over the devices of "
            f"all processes before the model is made. {_PAGE}"
        )
    if method == "predict":
        raise RuntimeError(
            f"`predict` was called in one of {count} processes. The logits of all rows lie in no "
            "one of them: use `score`, whose result each process has, or `predict` in one process."
        )


def own_rows(arguments: dict[str, Any]) -> dict[str, Any]:
    """Replaces data among arguments of `fit` or `evaluate` by rows of this process.

    Every process has the same data, and takes its rows of each batch. Nothing is replaced with one
    process, with `auto_shard_dataset=False`, where data are of each process alone, and for a
    `tf.data.Dataset` of batches, which Keras divides.

    Args:
        arguments: dict of arguments of `keras.Model.fit` or `evaluate`.

    Returns:
        A dict of arguments.

    Raises:
        ValueError: there is a `validation_split`.
    """
    distribution = keras.distribution.distribution()
    if process_count() == 1 or distribution is None or not distribution.auto_shard_dataset:
        return arguments
    if arguments.get("validation_split"):
        raise ValueError(
            "`validation_split` does not go with several processes. Split the data yourself, and "
            "pass `validation_data`."
        )
    arguments, steps = dict(arguments), arguments.get("steps_per_epoch", arguments.get("steps"))
    data = [arguments.get(name) for name in ("x", "y", "sample_weight")]
    shuffle, size = arguments.get("shuffle", "epochs" in arguments), arguments.get("batch_size")
    arguments["x"] = _own(*data, size, steps, shuffle)
    if arguments["x"] is not data[0]:
        arguments |= {"y": None, "sample_weight": None}
        arguments |= {"shuffle": False} if "shuffle" in arguments else {}
    if arguments.get("validation_data") is not None:
        validation = keras.utils.unpack_x_y_sample_weight(arguments["validation_data"])
        size = arguments.get("validation_batch_size") or size
        own = _own(*validation, size, arguments.get("validation_steps"), False)
        if own is not validation[0]:
            arguments["validation_data"] = own
    return arguments


def _own(
    x: Any, y: Any, sample_weight: Any, batch_size: int | None, steps: int | None, shuffle: bool
) -> Any:
    """Returns an adapter of data in memory or of a `BatchesAdapter`; other data as they are."""
    if isinstance(x, BatchesAdapter):
        x.part = _rows_of_process
        return x
    leaves = [leaf for leaf in keras.tree.flatten((x, y, sample_weight)) if leaf is not None]
    if not all(hasattr(leaf, "__array__") for leaf in leaves):
        return x
    batches = _InMemory((x, y, sample_weight), batch_size, steps, shuffle)
    return BatchesAdapter(batches, warns_of_end=steps is not None, part=_rows_of_process)


class _InMemory:
    """Iterates over batches of arrays, in an order that is the same in all processes.

    Args:
        data: tuple of x, y and weights, nested arrays of N rows, or None.
        batch_size: int or None.
        steps: int or None, the batches of an epoch.
        shuffle: bool, whether each epoch has an order of its own.
    """

    def __init__(self, data: Any, batch_size: int | None, steps: int | None, shuffle: bool) -> None:
        self._data = keras.tree.map_structure(_numpy, data)
        self._count = len(keras.tree.flatten(self._data[0])[0])
        self._size = batch_size or (math.ceil(self._count / steps) if steps else BATCH_SIZE)
        self._random = None
        self.first = [self._batch(np.arange(min(self._size, self._count)))]
        if shuffle:
            seed = backend_module("keras_rgemma.sharding").common_seed()
            self._random = np.random.RandomState(seed)

    @property
    def num_batches(self) -> int:
        return math.ceil(self._count / self._size)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        order = np.arange(self._count)
        if self._random is not None:
            order = self._random.permutation(order)
        for start in range(0, self._count, self._size):
            yield self._batch(order[start : start + self._size])

    def _batch(self, rows: np.ndarray) -> tuple[Any, ...]:
        taken = keras.tree.map_structure(lambda x: None if x is None else x[rows], self._data)
        return keras.utils.pack_x_y_sample_weight(*taken)

    def forget(self) -> None:
        """Does nothing: a pass keeps no batches."""

    def warn(self) -> None:
        """Does nothing: rows are complete."""


def _numpy(array: Any) -> np.ndarray | None:
    return None if array is None else keras.ops.convert_to_numpy(array)


def _rows_of_process(batch: tuple[Any, ...], is_first: bool) -> tuple[Any, ...]:
    """Takes the rows of a batch that lie on devices of this process.

    Args:
        batch: tuple of x, y and weights, the same in each process.
        is_first: bool, whether the processes compare the batch.

    Raises:
        ValueError: the processes have different data, or the mesh does not divide the rows.
    """
    distribution = keras.distribution.distribution()
    leaves = [leaf for leaf in keras.tree.flatten(batch) if leaf is not None]
    count = len(leaves[0])
    if is_first:
        _check_same(leaves)
    if count % axis_size(distribution.batch_dim_name):
        raise IndivisibleRowsError(count, distribution)
    layout = distribution.get_data_layout((count,)).backend_layout
    parts = layout.addressable_devices_indices_map((count,)).values()
    parts = sorted({rows.indices(count)[:2] for (rows,) in parts})
    rows = np.concatenate([np.arange(*part) for part in parts])
    return keras.tree.map_structure(lambda x: None if x is None else np.asarray(x)[rows], batch)


def _check_same(arrays: Iterable[Any]) -> None:
    checksum = 0
    for array in arrays:
        checksum = zlib.crc32(np.ascontiguousarray(array), checksum)
    if len(set(backend_module("keras_rgemma.sharding").gathered(checksum))) > 1:
        raise ValueError(
            "The processes read different first batches. Each must be given the same data in the "
            "same order, of which it takes its own rows: give a shuffled source a seed. Or pass "
            "`auto_shard_dataset=False` to the distribution and each process its own data; "
            "`batch_size` then counts the rows of one process."
        )
