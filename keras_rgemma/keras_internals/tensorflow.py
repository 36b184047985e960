"""Starts TensorFlow, runs its graphs and steps out of them, and shuffles arrays in each epoch."""

import contextlib
import functools
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras.src.trainers.data_adapters.array_data_adapter import ArrayDataAdapter
from keras.src.trainers.data_adapters.array_slicing import train_validation_split
from tensorflow.python.eager import record

from keras_rgemma.startup import without_startup_lines


@functools.cache
def start() -> None:
    """Starts the runtime of TensorFlow, as its first operation would, without a word about it."""
    with without_startup_lines():
        tf.config.list_logical_devices()


def outside_of_graphs() -> contextlib.AbstractContextManager[Any]:
    """Returns a context in which objects outlive the graph that is being traced."""
    return tf.init_scope()


def after(tensor: Any) -> contextlib.AbstractContextManager[Any]:
    """Returns a context in which operations of a graph wait until a tensor is computed.

    Args:
        tensor: `tf.Tensor`; for anything else the context does nothing.
    """
    return tf.control_dependencies([tensor] if tf.is_tensor(tensor) else [])


def run_graph(graph: Any, tensors: Sequence[tf.Tensor]) -> Any:
    """Runs a graph with tensors that fit it.

    A call of the graph itself looks at each tensor again, which takes as long as ten layers of a
    small model, and records gradients for a tape if there is one.

    Args:
        graph: `ConcreteFunction` of positional tensors.
        tensors: list of the tensors.
    """
    if not tf.executing_eagerly() or record.could_possibly_record():
        return graph(*tensors)
    return graph.inference_fn.call_preflattened([*tensors, *graph.captured_inputs])


def shuffled_in_each_epoch(arguments: dict[str, Any]) -> dict[str, Any]:
    """Replaces arrays among the arguments of `keras.Model.fit` that are to be shuffled.

    Keras 3.15 shuffles in a function of tf.data, which begins anew with each epoch: with a seed
    set, every epoch has the same order.

    Args:
        arguments: dict with `x`, `y`, `sample_weight`, `batch_size` and `validation_data`.
    """
    is_of_arrays = all(hasattr(leaf, "shape") for leaf in keras.tree.flatten(arguments["x"]))
    if not is_of_arrays or arguments.get("shuffle", True) in (False, "batch"):
        return arguments
    data = tuple(arguments[name] for name in ("x", "y", "sample_weight"))
    changes = {"y": None, "sample_weight": None, "batch_size": None, "shuffle": False}
    # Validation has the batch size of training otherwise.
    changes["validation_batch_size"] = (
        arguments.get("validation_batch_size") or arguments["batch_size"]
    )
    if arguments.get("validation_split") and arguments["validation_data"] is None:
        data, held_out = train_validation_split(data, arguments["validation_split"])
        changes |= {"validation_data": held_out, "validation_split": 0.0}
    steps = arguments.get("steps_per_epoch")
    changes["x"] = _ShuffledArrays(*data, batch_size=arguments["batch_size"], steps=steps)
    return {**arguments, **changes}


class _ShuffledArrays(ArrayDataAdapter):
    """Adapter that stands for `x` in `keras.Model.fit`, whose epochs have different orders."""

    def get_tf_dataset(self) -> tf.data.Dataset:
        arrays = keras.tree.map_structure(tf.convert_to_tensor, self._inputs)
        rows = tf.data.Dataset.range(self._num_samples).shuffle(self._num_samples)
        dataset = rows.batch(self._batch_size).map(
            lambda rows: keras.tree.map_structure(lambda array: tf.gather(array, rows), arrays),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = (
            tf.data.experimental.AutoShardPolicy.DATA
        )
        return dataset.with_options(options).prefetch(tf.data.AUTOTUNE)
