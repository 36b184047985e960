"""Arrays of any strides become arrays in rows, in threads and alone."""

import ml_dtypes
import numpy as np
import pytest

from backend_independent import backend_independent
from keras_rgemma.checkpoints.tensors import arrays


@backend_independent
@pytest.mark.parametrize("worth", [0, 1 << 40])
@pytest.mark.parametrize("cpus", [1, 3, None])
@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16", "float64"])
def test_arrays_in_rows(dtype, cpus, worth, monkeypatch):
    monkeypatch.setattr(arrays, "WORTH_THREADS", worth)
    monkeypatch.setattr(arrays, "_TILE", (5, 3))
    monkeypatch.setattr(arrays.os, "cpu_count", lambda: cpus)
    dtype = np.dtype(dtype) if dtype != "bfloat16" else ml_dtypes.bfloat16
    for shape in ((7,), (0, 3), (1, 1), (16, 7), (3, 11, 13), (2, 3, 5, 7)):
        array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
        for turned in (array, array.T, array.swapaxes(-1, -2) if len(shape) > 1 else array[::2]):
            result = arrays.in_rows(turned)
            assert result.flags.c_contiguous and result.dtype == turned.dtype
            np.testing.assert_array_equal(result, turned)
