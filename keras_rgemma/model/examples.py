"""Turns the arguments of `fit`, `evaluate` and `predict` with examples into those of Keras."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_rgemma.backend import backend_module
from keras_rgemma.keras_internals.data_adapters import BatchesAdapter
from keras_rgemma.model.preprocessor import RGemmaCausalLMPreprocessor
from keras_rgemma.shapes import check_token_ids
from keras_rgemma.text.batches import Batches, check_ends, complete
from keras_rgemma.text.examples import Tokens, check_no_labels, read_examples
from keras_rgemma.text.forms import is_row, is_text
from keras_rgemma.text.rows import make_rows
from keras_rgemma.text.sources import is_prepared, is_source, is_spec_of_rows


def fit_arguments(task: Any, arguments: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Reads the examples among the arguments of `fit`.

    Args:
        task: the model, with `preprocessor` and `backbone`.
        arguments: dict of the arguments; `x`, `y`, `sample_weight`, `batch_size` and
            `validation_data` must be there.

    Returns:
        A dict of arguments, and whether `keras.Model.fit` takes them as they are.

    Raises:
        TypeError, ValueError: examples are malformed, or arguments do not go together.
    """
    if arguments.get("class_weight") is not None:
        raise ValueError(
            "`class_weight` weighs labels by their class, and the labels here are tokens. Weigh "
            "examples with `sample_weight`, a number for each."
        )
    arguments, is_read = _read_for_fit(task, arguments)
    if is_read and keras.config.backend() == "tensorflow":
        arguments = backend_module("keras_rgemma.keras_internals").shuffled_in_each_epoch(arguments)
    return arguments, is_read


def _read_for_fit(task: Any, arguments: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Reads the examples as `fit_arguments` does."""
    validation = _split(arguments["validation_data"])
    if not _reads_examples(task.preprocessor):
        is_of_tensors = _is_of_tensors(tuple(arguments[x] for x in ("x", "y", "sample_weight")))
        if not is_of_tensors:  # else Keras warns that it does not shuffle datasets
            arguments = {"shuffle": False, **arguments}
        return arguments, is_of_tensors and _is_of_tensors(validation)
    batch_size, epochs = arguments["batch_size"], arguments.get("epochs", 1)
    steps = arguments.get("steps_per_epoch")
    if arguments.get("validation_split") and is_source(arguments["x"]):
        raise ValueError(
            "`validation_split` splits data that are in memory. These are read lazily: pass "
            "`validation_data`."
        )
    read = _read(task, arguments, batch_size, steps=steps, is_kept=epochs > 1 and not steps)
    if validation is not None:
        validation = dict(zip(("x", "y", "sample_weight"), validation, strict=True))
        steps = arguments.get("validation_steps")
        size = arguments.get("validation_batch_size")
        settings = {"steps": steps, "is_kept": epochs > 1 and not steps, "default": batch_size}
        validation = _read(task, validation, size, **settings)
        data = tuple(validation[name] for name in ("x", "y", "sample_weight"))
        read["validation_data"] = data if data[1] is not None else data[0]
    return read, True


def evaluate_arguments(task: Any, arguments: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Reads the examples among the arguments of `evaluate`, as `fit_arguments` does."""
    if not _reads_examples(task.preprocessor):
        return arguments, False
    steps = arguments.get("steps")
    return _read(task, arguments, arguments["batch_size"], steps=steps), True


def predict_arguments(task: Any, arguments: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Reads the examples among the arguments of `predict`, each a row, as `fit_arguments` does."""
    if not _reads_examples(task.preprocessor):
        return arguments, False
    batch_size, steps = arguments["batch_size"], arguments.get("steps")
    arguments = {**arguments, "y": None, "sample_weight": None}
    read = _read(task, arguments, batch_size, steps=steps, has_row_each=True)
    del read["y"], read["sample_weight"]
    return read, True


def _reads_examples(preprocessor: Any) -> bool:
    """Returns whether a preprocessor is ours, and no subclass with a `call` of its own."""
    return getattr(type(preprocessor), "call", None) is RGemmaCausalLMPreprocessor.call


@contextlib.contextmanager
def reading(arguments: dict[str, Any]) -> Iterator[None]:
    """Reports examples that were cut at the end of a block that reads lazily.

    Args:
        arguments: dict as of `fit_arguments`.

    Raises:
        Exception: an exception that was raised while a batch was made, as it was.
    """
    data = (arguments.get("x"), arguments.get("validation_data"))
    adapters = [part for part in data if isinstance(part, BatchesAdapter)]
    try:
        yield
    except Exception as error:
        for adapter in adapters:
            if adapter.error is not None and adapter.error is not error:
                raise adapter.error from error
        raise
    finally:
        for adapter in adapters:
            adapter.close()
    for adapter in adapters:
        adapter.batches.warn()


def _read(
    task: Any,
    arguments: dict[str, Any],
    batch_size: int | None,
    steps: int | None = None,
    is_kept: bool = False,
    default: int | None = None,
    has_row_each: bool = False,
) -> dict[str, Any]:
    """Replaces `x`, `y` and `sample_weight` among arguments by rows, or by an adapter of batches.

    Args:
        task: the model, with an `RGemmaCausalLMPreprocessor`.
        arguments: dict of `x`, `y`, `sample_weight`, and others.
        batch_size: int or None.
        steps: int or None, the batches of an epoch.
        is_kept: bool, whether generators must give their batches several times.
        default: int or None, the batch size of single examples if `batch_size` is None.
        has_row_each: bool, whether each example has its row, be there a loss or none.
    """
    preprocessor, vocabulary_size = task.preprocessor, task.backbone.vocabulary_size
    if not preprocessor.built:
        preprocessor.build(None)  # Keras traces a model with a layer that is not, in each call
    x, y, sample_weight = (arguments[name] for name in ("x", "y", "sample_weight"))
    if isinstance(x, tuple) and is_prepared(x) and y is None and sample_weight is None:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(x)
    if is_row(x) and is_prepared(x):
        x, y, sample_weight = _prepared(x, y, sample_weight, has_labels=not has_row_each)
        check_token_ids(keras.ops.convert_to_numpy(x["token_ids"]), vocabulary_size)
        return {**arguments, "x": x, "y": y, "sample_weight": sample_weight}
    check_no_labels(y)
    packing = preprocessor.packing and not has_row_each
    auto = "keep" if has_row_each else "skip" if is_source(x) else "error"
    is_auto = has_row_each or preprocessor.lost_responses == "auto"
    lost = auto if is_auto else preprocessor.lost_responses
    if not is_source(x):
        rows = _rows(preprocessor, x, sample_weight, packing, lost)
        check_token_ids(rows[0]["token_ids"], vocabulary_size)
        return {**arguments, **dict(zip(("x", "y", "sample_weight"), rows, strict=True))}
    if sample_weight is not None:
        raise ValueError(
            "`sample_weight` weighs examples in memory, and these data are read lazily. Pass a "
            "list, or a source of rows with labels and weights, as the preprocessor returns them."
        )
    if steps is None:
        check_ends(x, "An epoch would not end, either")
    read = {**arguments, "y": None}
    if "validation_data" in arguments:  # of `fit`
        if arguments.get("shuffle"):
            warnings.warn(
                "`shuffle=True` was passed, but what is read lazily keeps its order: shuffle "
                "the source itself.",
                stacklevel=2,
            )
        read["shuffle"] = False  # else Keras warns, whatever was passed
    if is_spec_of_rows(x) and batch_size is None:
        return read
    settings = {"packing": packing, "lost": lost, "is_kept": is_kept, "default": default}
    settings["vocabulary_size"] = vocabulary_size
    batches = Batches(preprocessor, x, batch_size, **settings)
    return {**read, "x": BatchesAdapter(batches, x, warns_of_end=steps is not None)}


def _rows(
    preprocessor: Any, x: Any, sample_weight: Any, packing: bool, lost: str
) -> tuple[Any, ...]:
    """Makes rows of examples in memory."""
    examples, is_batch = read_examples(x, preprocessor.columns)
    if not is_batch and isinstance(examples[0], (str, Tokens)):
        raise ValueError(
            "`fit`, `evaluate` and `predict` take texts with a batch dimension. Received one "
            f"text, {x!r}: put it into a list."
        )
    length = preprocessor.sequence_length
    return make_rows(preprocessor, examples, length, packing, lost, sample_weight)


def _prepared(x: Any, y: Any, sample_weight: Any, has_labels: bool) -> tuple[Any, Any, Any]:
    """Turns lists into arrays; adds labels to prepared rows without if they need them."""

    def array(value: Any) -> Any:
        return value if value is None or hasattr(value, "shape") else np.asarray(value)

    x, y, sample_weight = {key: array(x[key]) for key in x}, array(y), array(sample_weight)
    if "padding_mask" not in x:
        x["padding_mask"] = np.ones(x["token_ids"].shape, "int32")
    if has_labels and y is None and sample_weight is None:
        numpy = {key: keras.ops.convert_to_numpy(x[key]) for key in x}
        _, y, sample_weight = complete((numpy,))
    return x, y, sample_weight


def _split(validation_data: Any) -> tuple[Any, ...] | None:
    """Splits validation data into x, y and weights; returns None if there are none.

    A tuple is `(x,)`, `(x, y)` or `(x, y, sample_weight)`, as in Keras, if it is not of texts.
    """
    if validation_data is None:
        return None
    is_tuple = isinstance(validation_data, tuple) and 1 <= len(validation_data) <= 3
    if is_tuple and not all(map(is_text, validation_data)):
        return keras.utils.unpack_x_y_sample_weight(validation_data)
    return validation_data, None, None


def _is_of_tensors(data: Any) -> bool:
    """Returns whether data are None, or a tuple of arrays that Keras can slice and shuffle."""
    leaves = [leaf for leaf in keras.tree.flatten(data) if leaf is not None]
    is_rows = data is None or (is_row(data[0]) and is_prepared(data[0]))
    return is_rows and all(getattr(leaf, "shape", ()) for leaf in leaves)
