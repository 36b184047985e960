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
from keras_rgemma.shapes import check_one_document
from keras_rgemma.sharding.host import numpy_of
from keras_rgemma.state import file
from keras_rgemma.state.fingerprint import Fingerprint
from keras_rgemma.state.records import ModelState
from keras_rgemma.types import StrPath, Tensor

MOST_TOKENS = 2**31 - 2**23  # in one text: positions are int32, and one call writes up to 2^22


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


# === Continuing from a state ===


def consumed_by(task: Any, state: RGemmaState) -> ModelState:
    """Returns the `ModelState` of a state, in the dtypes of a model.

    Args:
        task: a `keras.Model` with `fingerprint()` and `state_specification()`.
        state: `RGemmaState`.

    Raises:
        TypeError: `state` is no state.
        ValueError: the state does not fit the model.
    """
    check_is_state(state)
    if reason := state.fingerprint.difference(task.fingerprint()):
        raise ValueError(
            f"This state belongs to another model: {reason}. Load the model that made it, or read "
            "the text again with `prefill`."
        )
    expected = task.state_specification()
    shapes = [tuple(array.shape[1:]) for array in keras.tree.flatten(state.consumed)]
    if shapes != [tuple(array.shape[1:]) for array in keras.tree.flatten(expected)]:
        raise ValueError(
            f"The arrays of this state have other shapes than this model's: {shapes}. Load the "
            "model that made it, or read the text again with `prefill`."
        )
    return keras.tree.map_structure(
        lambda array, like: ops.cast(array, like.dtype), state.consumed, expected
    )


def check_is_state(state: object) -> None:
    """Raises TypeError if an argument is no state."""
    if not isinstance(state, RGemmaState):
        raise TypeError(
            f"`state` must be an RGemmaState. Received: {state!r}. `prefill`, "
            "`generate(..., return_state=True)` and `RGemmaState.load` return one."
        )


def check_rows(state: RGemmaState, count: int) -> None:
    """Raises ValueError if a state has not `count` rows, TypeError if it is no state."""
    check_is_state(state)
    if state.batch_size != count:
        raise ValueError(
            f"The state holds {state.batch_size} rows, but {count} were given to go on with. Use "
            "`state.repeat(n)` for several continuations of each row, or `state[i]` for one row."
        )


def prepend_carried_token(state: RGemmaState, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Prepends the token that a state carries to each row of tokens.

    Args:
        state: `RGemmaState` of B rows.
        rows: list of B int arrays.

    Raises:
        ValueError: a text would have more tokens than an int32 position can count.
    """
    check_lengths(state.num_tokens + [len(row) for row in rows])
    last = numpy_of(state.last_token_ids)[:, None]
    pairs = zip(last, rows, strict=True)
    return [np.concatenate(pair).astype("int32") for pair in pairs]


def prepend_carried_column(
    state: RGemmaState, token_ids: np.ndarray, padding_mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Prepends the tokens that a state carries, as a column, to arrays of rows.

    Args:
        state: `RGemmaState` of B rows.
        token_ids: int32 [B, T].
        padding_mask: int32 [B, T], tokens first.

    Returns:
        Two int32 arrays [B, T + 1].

    Raises:
        ValueError: another number of rows, pads before tokens, or several documents in a row.
    """
    check_rows(state, len(token_ids))
    check_one_document(padding_mask, may_be_empty=True)
    is_late = (np.diff((padding_mask > 0).astype(int), axis=1, prepend=1) > 0).any(axis=1)
    if is_late.any():
        raise ValueError(
            "Behind a state the tokens of a row come first, then its pads. Received a pad before a "
            f"token in row {int(is_late.argmax())}. Move the pads of each row to its end."
        )
    check_lengths(state.num_tokens + token_ids.shape[1])
    last = numpy_of(state.last_token_ids)
    mask = np.pad(padding_mask > 0, ((0, 0), (1, 0)), constant_values=True)
    return np.hstack([last[:, None], token_ids]), mask.astype("int32")


def check_lengths(lengths: np.ndarray) -> None:
    """Raises ValueError if a text would have more tokens than an int32 position can count."""
    if max(lengths) > MOST_TOKENS:
        raise ValueError(
            f"A text has at most {MOST_TOKENS:,} tokens. This has {max(lengths):,}. Begin anew "
            "with a part of it."
        )


def state_of(
    fingerprint: Fingerprint, last_tokens: Sequence[int], consumed: ModelState
) -> RGemmaState:
    """Makes the `RGemmaState` of rows.

    Args:
        fingerprint: `Fingerprint` of the model at the time when it read the rows.
        last_tokens: list of B ints, the last token of each row.
        consumed: `ModelState` of the tokens before the last one.
    """
    last = tensor_of(np.array(last_tokens, "int32"))
    return RGemmaState(last, consumed, fingerprint)
