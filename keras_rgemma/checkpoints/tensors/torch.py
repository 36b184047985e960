"""Gives variables their arrays on PyTorch."""

import keras
import ml_dtypes
import numpy as np
import torch

from keras_rgemma.checkpoints.tensors.arrays import in_rows, is_turned_half
from keras_rgemma.keras_internals import variables as internals
from keras_rgemma.keras_internals.torch import default_device


def give(variable: keras.Variable, array: np.ndarray) -> None:
    """Gives a variable its first value: see `keras_rgemma.checkpoints.tensors`."""
    internals.initialize(variable, lambda shape, dtype: _tensor(array, dtype))


def _tensor(array: np.ndarray, dtype: str) -> torch.Tensor:
    # On a CPU a matrix stays in the pages of its file, as Hugging Face has it: several rows are
    # multiplied faster so. `generation.torch` changes that for a single row.
    if default_device() != "cpu" or not is_turned_half(array, dtype):
        array = in_rows(array)
    if array.dtype == ml_dtypes.bfloat16:
        # PyTorch takes no bfloat16 from NumPy, and Keras would go through float32.
        array = torch.from_numpy(array.view("int16")).view(torch.bfloat16)
    return keras.ops.convert_to_tensor(array, dtype=dtype)
