"""Chooses the layers that `quantize` of a model reaches."""

from __future__ import annotations

import re
from typing import Any

import keras


def quantizable(filters: Any = None) -> Any:
    """Returns `filters` of `keras.Model.quantize` that leave out layers which cannot be quantized.

    Keras warns of each layer that has no `quantize` of its own, such as a norm, as if it were an
    oversight.

    Args:
        filters: what `keras.Model.quantize` takes: None, a regular expression for names of
            layers, several of them, or a function of a layer.
    """
    if isinstance(filters, str):
        filters = [filters]
    is_list = isinstance(filters, (list, tuple))
    if not (filters is None or is_list or callable(filters)):
        return filters  # which Keras refuses

    def reaches(layer: keras.Layer) -> bool:
        if type(layer).quantize is keras.Layer.quantize:
            return False
        if is_list:
            return any(re.search(pattern, layer.name) for pattern in filters)
        return filters is None or filters(layer)

    return reaches
