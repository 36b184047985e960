"""Defines a source of tensors: the interface between a file format and the loader."""

from typing import Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class TensorSource(Protocol):
    """Reads the tensors of an open checkpoint, one at a time.

    A format of files is a class with these attributes. Its constructor raises ValueError for broken
    files, before a tensor is read.

    Attributes:
        format: str of `names.FORMATS`, whose names the tensors have.
        shapes: dict of a tensor's name to its shape, tuple of ints.
        dtypes: dict of a tensor's name to its NumPy dtype.
        copies: dict of the name of an optional tensor to the name of the tensor that it repeats.
    """

    format: str
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, np.dtype]
    copies: dict[str, str]

    def read(self, name: str) -> np.ndarray:
        """Reads a tensor as a NumPy array that nobody else writes to.

        The array may be one of the pages of a file. Writing to it changes no file.

        A source with `copies` also takes `rows`, a slice of the first axis.

        Args:
            name: str, a key of `shapes`.

        Raises:
            ValueError: the file of the tensor is broken.
        """
        ...
