"""Changes the layout between a weight of the model and a tensor of a file, and back.

Transforms only move axes, so they work on NumPy arrays of any dtype and are exact to the bit.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Transform(NamedTuple):
    """Changes a layout, with an inverse.

    Attributes:
        to_file: function of the model's array that returns the array of the file.
        from_file: the inverse function.
        file_shape: function of the model's shape that returns the shape in the file.
    """

    to_file: Callable[[np.ndarray], np.ndarray]
    from_file: Callable[[np.ndarray], np.ndarray]
    file_shape: Callable[[tuple[int, ...]], tuple[int, ...]]


SAME = Transform(lambda x: x, lambda x: x, tuple)
# [in, out] <-> [out, in]
TRANSPOSED = Transform(lambda x: x.T, lambda x: x.T, lambda shape: (*shape[::-1],))
# Taps of a depthwise convolution, [conv_width, L] <-> [L, 1, conv_width].
DEPTHWISE = Transform(
    lambda x: x.T[:, None],
    lambda x: x[:, 0].T,
    lambda shape: (shape[1], 1, shape[0]),
)
# The bias of a head-major product, [H, 1, 1, L / H] <-> [H, L / H].
HEAD_BIAS = Transform(
    lambda x: x[:, 0, 0],
    lambda x: x[:, None, None],
    lambda shape: (shape[0], shape[3]),
)
# A bias beside its branch in one tensor, [M] <-> [1, 1, M].
BRANCH_BIAS = Transform(lambda x: x[None, None], lambda x: x[0, 0], lambda shape: (1, 1, *shape))
