"""Keeps the tensors that a function makes of numbers, so that they can be part of a CUDA graph."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from keras_rgemma.keras_internals.torch import change_count, normal_tensors

_MADE_OF_NUMBERS = (torch.as_tensor, torch.tensor)
_NUMBERS = (bool, int, float, complex, np.ndarray, np.generic)


class KeptConstants(TorchFunctionMode):
    """Makes each tensor of numbers once inside of `with` blocks, and returns it from then on.

    Keras' operations copy numbers of Python to the GPU at every call. A graph cannot hold a copy
    from the host, which would also wait for the GPU. Whatever the blocks run must make its tensors
    of the same numbers each time, as a step does.

    Raises:
        RuntimeError: such a tensor was changed in place.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kept = {}

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if function not in _MADE_OF_NUMBERS or not args or not _is_of_numbers(args[0]):
            return function(*args, **kwargs)
        array = np.asarray(args[0])
        options = (args[1:], *sorted((name, str(value)) for name, value in kwargs.items()))
        kind = (function, type(args[0]), torch.get_default_dtype(), array.dtype.str, array.shape)
        key = (*kind, array.tobytes(), *options)
        if key not in self._kept:
            with normal_tensors():
                self._kept[key] = function(*args, **kwargs)
        tensor = self._kept[key]
        if change_count(tensor):
            raise RuntimeError(
                f"A tensor that was made of {args[0]!r} is changed in place. Make a new one, as "
                "`x = x + 1` does."
            )
        return tensor


def _is_of_numbers(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_of_numbers, value))
    return isinstance(value, _NUMBERS)
