"""Names the types that the signatures of many modules share.

They are for readers and type checkers. At run time an array is an array of the Keras backend, which
this module does not import.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias


class Tensor(Protocol):
    """Describes an array of the Keras backend, or a symbol of one.

    `jax.Array`, `tf.Tensor`, `torch.Tensor`, `keras.Variable` and `keras.KerasTensor` are such
    arrays, and so is `np.ndarray`, which every function of `keras.ops` takes.

    Attributes:
        shape: sizes of the axes; None for a size that is not known yet.
        dtype: the dtype in the backend's own form.
    """

    @property
    def shape(self) -> Any:
        """Returns the sizes of the axes."""
        ...

    @property
    def dtype(self) -> Any:
        """Returns the dtype in the backend's own form."""
        ...

    def __getitem__(self, key: Any, /) -> Any: ...

    def __add__(self, other: Any, /) -> Any: ...

    def __radd__(self, other: Any, /) -> Any: ...

    def __sub__(self, other: Any, /) -> Any: ...

    def __rsub__(self, other: Any, /) -> Any: ...

    def __mul__(self, other: Any, /) -> Any: ...

    def __rmul__(self, other: Any, /) -> Any: ...

    def __truediv__(self, other: Any, /) -> Any: ...

    def __neg__(self) -> Any: ...

    def __lt__(self, other: Any, /) -> Any: ...

    def __le__(self, other: Any, /) -> Any: ...

    def __gt__(self, other: Any, /) -> Any: ...

    def __ge__(self, other: Any, /) -> Any: ...


# The sizes of an array; None for a size that is not known yet.
Shape: TypeAlias = Sequence[int | None]
# The name of a file or folder.
StrPath: TypeAlias = str | os.PathLike[str]
# A linear map of [..., inputs] to [..., outputs]: a layer, or a function that holds its weights.
LinearMap: TypeAlias = Callable[[Tensor], Tensor]
# What a layer's `bound` applies to each of its parts, see `layers/binding.py`.
Bind: TypeAlias = Callable[[Any], Any]
# The name of an implementation of an operation, "auto", or the function that implements it.
Implementation: TypeAlias = str | Callable[..., Any]
# Arrays in dicts, lists, tuples and records, at any depth, as `keras.tree` takes them.
Tree: TypeAlias = Any
