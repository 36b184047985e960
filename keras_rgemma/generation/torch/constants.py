"""Keeps the tensors that a function makes of numbers, so that they can be part of a CUDA graph."""

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

_MADE_OF_NUMBERS = (torch.as_tensor, torch.tensor)


class KeptConstants(TorchFunctionMode):
    """Makes each tensor of numbers once inside of `with` blocks, and returns it from then on.

    Keras' operations copy numbers of Python to the GPU at every call. A graph cannot hold a copy
    from the host, which would also wait for the GPU. Whatever the blocks run must make its tensors
    of the same numbers each time, as a step does, and not change them.
    """

    def __init__(self):
        super().__init__()
        self._kept = {}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function not in _MADE_OF_NUMBERS or not args or isinstance(args[0], torch.Tensor):
            return function(*args, **kwargs)
        array = np.asarray(args[0])
        options = tuple(sorted((name, str(value)) for name, value in kwargs.items()))
        key = (array.dtype.str, array.shape, array.tobytes(), args[1:], options)
        if key not in self._kept:
            self._kept[key] = function(*args, **kwargs)
        return self._kept[key]
