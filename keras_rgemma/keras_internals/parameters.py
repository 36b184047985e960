"""Lets PyTorch train the variables of a model; does nothing on other backends."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras

if keras.config.backend() == "torch":
    from keras_rgemma.keras_internals.torch import (
        ParametersOfVariables,
        no_gradients,
        normal_tensors,
    )
else:

    class ParametersOfVariables:
        """Mixin for a model; see `keras_internals.torch`."""

    @contextlib.contextmanager
    def normal_tensors() -> Iterator[None]:
        """Does nothing; see `keras_internals.torch`."""
        yield

    no_gradients: Callable[..., contextlib.AbstractContextManager[Any]] = contextlib.nullcontext


__all__ = ["ParametersOfVariables", "no_gradients", "normal_tensors"]
