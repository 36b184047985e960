"""Recognises datasets of `tf.data` and grain, and turns their examples into arrays."""

import itertools
import sys

import numpy as np

from keras_rgemma.text.examples import rows, singles


def is_dataset(data):
    """Checks whether data are a `tf.data` or a grain dataset."""
    return hasattr(data, "element_spec") or type(data).__module__.startswith("grain.")


def is_of_arrays(data):
    """Checks whether data are a dataset of arrays from a preprocessor."""
    if not is_dataset(data):
        return False
    element = data.element_spec if hasattr(data, "element_spec") else next(iter(data), None)
    first = element[0] if isinstance(element, tuple) else element
    return isinstance(first, dict) and "token_ids" in first


def is_sliced(examples):
    """Checks whether examples are texts, or prompts and responses, that Keras can batch itself."""
    if isinstance(examples, (str, dict)) or hasattr(examples, "element_spec"):
        return True
    if is_dataset(examples):  # of grain
        examples = next(iter(examples), ())
        return not isinstance(examples, (list, tuple)) or is_sliced(examples[:1])
    if isinstance(examples, (list, tuple)):
        return not any(isinstance(example, (list, tuple, dict)) for example in examples[:1])
    return hasattr(examples, "dtype")


def arrays_of(preprocessor, data):
    """Turns examples, in any form that `fit` takes, into arrays.

    Args:
        preprocessor: `RGemmaCausalLMPreprocessor`.
        data: examples as of `rows`; or a `tf.data` or grain dataset of batches of examples.

    Returns:
        A pair of `(x, y, sample_weight)`, and the batch size of a dataset or None.
    """
    size = None
    if is_dataset(data):
        _check_ends(data)
        batches = data.as_numpy_iterator() if hasattr(data, "as_numpy_iterator") else iter(data)
        first = next(batches, ())
        values = next(iter(first.values())) if isinstance(first, dict) else first
        is_batch = not isinstance(values, (str, bytes)) and np.ndim(values) > 0
        size = len(values) if is_batch else None
        data = itertools.chain.from_iterable(map(singles, itertools.chain([first], batches)))
    return rows(preprocessor, data), size


def _check_ends(dataset):
    """Raises ValueError if a dataset is known to have no end."""
    if hasattr(dataset, "cardinality"):
        is_endless = dataset.cardinality() == -1  # tf.data.INFINITE_CARDINALITY
    else:
        is_endless = hasattr(dataset, "__len__") and len(dataset) >= sys.maxsize
    if is_endless:
        raise ValueError(
            "A dataset without an end cannot be read as a whole, as packing needs. Leave `repeat` "
            "out and pass `epochs`, or pack the examples first: `lm.preprocessor(examples)`."
        )
