"""Keeps, forks and continues the state of a conversation or a document."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

import keras
import numpy as np
from keras import ops

from keras_rgemma.backend import backend_module, tensor_of
from keras_rgemma.keras_internals.pytree import register_pytree
from keras_rgemma.sharding.host import numpy_of
from keras_rgemma.state import file
from keras_rgemma.state.fingerprint import Fingerprint
from keras_rgemma.state.records import ModelState
from keras_rgemma.types import StrPath, Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class RGemmaState:
    """Holds all that a model remembers of B texts. Its size does not grow with the texts.

    A state has consumed every token of a text but the last one, which it carries: new tokens are
    fed behind that token, exactly once, and a text can go on without any. A state never changes:
    each call that continues from a state returns another one, so a state can be used again, by
    several requests at a time.

    `RGemmaCausalLM.prefill` and `generate(..., return_state=True)` return states. A state is a
    pytree for `keras.tree` and, on JAX, for `jax.tree`. `state[i]` and `state[i:j]` are states of
    these rows.

    Attributes:
        last_token_ids: int32 [B], the last token of each text, which is not consumed yet.
        consumed: `keras_rgemma.state.records.ModelState` of the tokens before the last one.
        fingerprint: `keras_rgemma.state.fingerprint.Fingerprint` of the state's model.

    Example:
    ```python
    lm = keras_rgemma.RGemmaCausalLM.from_preset("rgemma_tiny_en")
    state = lm.prefill("In the beginning God created")  # RGemmaState(batch_size=1, ...)
    state.batch_size, state.num_tokens, state.nbytes
    lm.generate(" the", state=state, max_new_tokens=8)
    lm.generate([" man", " woman"], state=state.repeat(2), max_new_tokens=8)
    ```
    """

    last_token_ids: object
    consumed: ModelState
    fingerprint: Fingerprint

    @property
    def batch_size(self) -> int:
        """Returns B, int."""
        return int(self.last_token_ids.shape[0])

    def __len__(self) -> int:
        return self.batch_size

    @property
    def num_tokens(self) -> np.ndarray:
        """Returns the number of tokens of each text, the carried one included; NumPy ints [B]."""
        return numpy_of(self.consumed.num_tokens).astype("int64") + 1

    @property
    def nbytes(self) -> int:
        """Returns the number of bytes of the arrays, int."""
        return sum(_nbytes(array) for array in keras.tree.flatten(self.tree_flatten()[0]))

    def __repr__(self) -> str:
        readers = {
            "batch_size": lambda: self.batch_size,
            "num_tokens": lambda: self.num_tokens.tolist(),
            "nbytes": lambda: self.nbytes,
        }
        return f"RGemmaState({', '.join(f'{x}={_shown(read)}' for x, read in readers.items())})"

    def __getitem__(
        self, rows: int | slice | Sequence[int] | Sequence[bool] | np.ndarray
    ) -> RGemmaState:
        """Returns the state of some rows.

        Args:
            rows: int, slice, or sequence of ints or booleans.

        Raises:
            IndexError: a row does not exist.

        Example:
        ```python
        state = lm.prefill(["In the beginning", "And God said", "And the earth"])
        state[0], state[1:], state[[2, 0]]
        ```
        """
        index = np.arange(self.batch_size)[rows]  # NumPy knows every kind of index, and its errors
        if index.ndim > 1:
            raise IndexError(
                f"Rows are an int, a slice or a sequence of ints or booleans. Received: {rows!r}. "
                "Write `state[0]`, `state[1:3]` or `state[[0, 2]]`."
            )
        return keras.tree.map_structure(
            lambda array: ops.take(array, tensor_of(np.atleast_1d(index)), axis=0), self
        )

    def repeat(self, repeats: int) -> RGemmaState:
        """Repeats each row `repeats` times, one after the other.

        Args:
            repeats: int, at least 1.

        Raises:
            ValueError: `repeats` is another number.

        Example:
        ```python
        lm.generate([" was", " the"], state=lm.prefill("In the beginning").repeat(2))
        ```
        """
        if isinstance(repeats, bool) or not isinstance(repeats, (int, np.integer)) or repeats < 1:
            raise ValueError(f"`repeats` must be a positive integer. Received: {repeats!r}.")
        return self[np.repeat(np.arange(self.batch_size), repeats)]

    @classmethod
    def concatenate(cls, several: Iterable[RGemmaState]) -> RGemmaState:
        """Joins the rows of several states of the same model in one state.

        Args:
            several: sequence of `RGemmaState`.

        Raises:
            ValueError: the sequence is empty, or the states belong to different models.
            TypeError: an element is no state.

        Example:
        ```python
        state = keras_rgemma.RGemmaState.concatenate([lm.prefill(x) for x in ("In", "And")])
        ```
        """
        several = list(several)
        if not several:
            raise ValueError(
                "`RGemmaState.concatenate` needs at least one state. Received: []. `prefill` makes "
                "states."
            )
        for state in several:
            check_is_state(state)
        # A state from a file of an older version says less of its model than others do.
        fingerprint = max((x.fingerprint for x in several), key=lambda x: len(x.checksums))
        for state in several:
            if reason := fingerprint.difference(state.fingerprint):
                raise ValueError(
                    f"These states belong to different models: {reason}. Join those that one model "
                    "made."
                )
        several = [dataclasses.replace(state, fingerprint=fingerprint) for state in several]
        return keras.tree.map_structure(lambda *arrays: ops.concatenate(arrays, axis=0), *several)

    # === A pytree, as Keras and JAX take classes for one ===

    def tree_flatten(self) -> tuple[tuple[Tensor, ModelState], Fingerprint]:
        """Returns the arrays, and the fingerprint of their model."""
        return (self.last_token_ids, self.consumed), self.fingerprint

    @classmethod
    def tree_unflatten(cls, fingerprint: Fingerprint, children: Iterable[Any]) -> Self:
        """Makes a state from the results of `tree_flatten`."""
        return cls(*children, fingerprint)

    # === Files ===

    def save(self, path: StrPath) -> None:
        """Writes a file that `load` reads on any backend.

        The file is complete or not there. Its arrays have the dtypes that they have in memory.

        Args:
            path: str or path, by convention with the suffix `.rgstate`.

        Raises:
            OSError: the file cannot be written.

        Example:
        ```python
        lm.prefill("In the beginning").save("genesis.rgstate")
        ```
        """
        write_state(path, self)

    @classmethod
    def load(cls, path: StrPath) -> RGemmaState:
        """Reads a file that `save` wrote on any backend.

        A model checks whether a state fits when it is called with that state.

        Args:
            path: str or path.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is of another kind, damaged, or of another version of the format.

        Example:
        ```python
        lm.prefill("In the beginning").save("genesis.rgstate")
        state = keras_rgemma.RGemmaState.load("genesis.rgstate")
        ```
        """
        return read_state(path)[0]


def _register() -> None:
    register_pytree(RGemmaState)
    if keras.config.backend() == "jax":  # which has a registry of its own
        backend_module("keras_rgemma.state").register_pytree(RGemmaState)


_register()


def _shown(read: Callable[[], object]) -> str:
    """Returns a value as a str; "?" if a program is being traced, where no value is known yet."""
    try:
        return str(read())
    except (TypeError, ValueError, AttributeError, IndexError, NotImplementedError):
        return "?"


def _nbytes(array: Tensor) -> int:
    return int(np.prod(array.shape)) * np.dtype(file.numpy_dtype(array)).itemsize


def write_state(path: StrPath, state: RGemmaState, extra: dict[str, Any] | None = None) -> None:
    """Writes a state and other data of JSON types into one file.

    Args:
        path: str or path.
        state: `RGemmaState`.
        extra: dict of JSON types.
    """
    file.write(path, state.last_token_ids, state.consumed, state.fingerprint, extra)


def read_state(path: StrPath) -> tuple[RGemmaState, dict[str, Any]]:
    """Reads a state and the other data from a file.

    Args:
        path: str or path.

    Returns:
        A pair of `RGemmaState` and a dict.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is of another kind, damaged, or of another version of the format.
    """
    last_token_ids, consumed, base, extra = file.read(path)
    return RGemmaState(last_token_ids, consumed, base), extra


def check_is_state(state: object) -> None:
    """Raises TypeError if an argument is no state."""
    if not isinstance(state, RGemmaState):
        raise TypeError(
            f"`state` must be an RGemmaState. Received: {state!r}. `prefill`, "
            "`generate(..., return_state=True)` and `RGemmaState.load` return one."
        )
