"""Lists the letters of the dimensions of arrays, and checks arguments that users pass.

| letter | dimension                                                              |
|--------|------------------------------------------------------------------------|
| B      | batch: rows                                                            |
| T      | time: tokens of a row                                                  |
| S      | source: keys and values that a query may see                           |
| D      | `hidden_dim`, the width of the residual stream                         |
| L      | `lru_dim`, the width of the recurrence                                 |
| M      | `intermediate_dim`, the width of one branch of the gated MLP           |
| H      | heads: query heads, which are also the blocks of the gates             |
| G      | query heads that share one key/value head                              |
| K      | `head_dim`, the width of one head                                      |
| W      | `sliding_window_size`                                                  |
| C      | tokens in one block of queries, or steps in one chunk of a recurrence  |
| N      | such blocks or chunks                                                  |
| V      | `vocabulary_size`                                                      |

A local name such as `x_BTD` carries the letters inside `ops` and `layers`.
"""

import difflib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from keras_rgemma.types import Shape


def as_array(values: ArrayLike, name: str) -> np.ndarray:
    """Converts an argument to a NumPy array of numbers.

    Args:
        values: array-like.
        name: str, the name of the argument in errors.

    Raises:
        ValueError: the rows have several lengths.
    """
    try:
        array = np.asarray(values)
    except ValueError:
        array = np.asarray(None)
    if array.dtype == object:
        raise ValueError(
            f"`{name}` must be an array of numbers, every row of the same length. Received: "
            f"{values!r}. Pad the rows and mark the pads in `padding_mask`."
        )
    return array


def check_text(value: str | bytes, what: str = "A prompt") -> str:
    """Converts a str or bytes to a str that a tokenizer can take.

    Args:
        value: str or bytes.
        what: str, the name of the value in errors.

    Raises:
        ValueError: the value is no valid Unicode.
        TypeError: the value is neither str nor bytes.
    """
    try:
        if isinstance(value, bytes):
            return value.decode("utf-8")
        if isinstance(value, str):
            value.encode("utf-8")
    except UnicodeError as error:
        raise ValueError(
            f"{what} must be valid Unicode. Received: {value!r} ({error}). Replace what is not, "
            "for bytes with `.decode('utf-8', 'replace')`."
        ) from error
    if not isinstance(value, str):
        raise TypeError(
            f"{what} must be a str. Received: {value!r} of type {type(value).__name__}. Token ids "
            "go in a dict: {'token_ids': ..., 'padding_mask': ...}."
        )
    return str(value)


def check_token_ids(
    token_ids: ArrayLike, vocabulary_size: int, name: str = "token_ids"
) -> np.ndarray:
    """Converts token ids to an int32 array [B, T], if all of them are in the vocabulary.

    Args:
        token_ids: array-like of integers, [B, T].
        vocabulary_size: int, the ids must lie in `[0, vocabulary_size)`.
        name: str, the name of the argument in errors.

    Raises:
        ValueError: another rank, another dtype, no rows, or an id outside of the vocabulary.
    """
    ids = as_array(token_ids, name)
    if ids.ndim != 2:
        raise ValueError(
            f"`{name}` must have the shape [batch, tokens], every row of the same length. "
            f"Received: {ids.shape}. Pad the rows and mark the pads in `padding_mask`; a "
            "single row is a batch of one, and a tf.data.Dataset becomes batches with `.batch`."
        )
    if ids.shape[0] == 0:
        raise ValueError(f"`{name}` holds no rows. Pass at least one.")
    if ids.size and not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(
            f"`{name}` must be integers. Received the dtype {ids.dtype}. Convert it with "
            "`.astype('int32')`."
        )
    outside = (ids < 0) | (ids >= vocabulary_size)
    if outside.any():
        row, column = np.argwhere(outside)[0]
        raise ValueError(
            f"`{name}` must lie in [0, {vocabulary_size}), the vocabulary. Received "
            f"{int(ids[row, column])} in row {row}, column {column}. Use the tokenizer that "
            "belongs to this model."
        )
    return ids.astype("int32")


def check_padding_mask(padding_mask: ArrayLike | None, shape: Sequence[int]) -> np.ndarray:
    """Converts a padding mask to an int32 array of `shape` (all ones for None).

    Args:
        padding_mask: array-like of integers or booleans, [B, T], or None. 0 is a pad, a positive
            number is the document of a token.
        shape: the shape of the token ids.

    Raises:
        ValueError: the mask has another shape, a negative number, or another dtype.
    """
    if padding_mask is None:
        return np.ones(shape, "int32")
    mask = as_array(padding_mask, "padding_mask")
    if mask.shape != tuple(shape):
        raise ValueError(
            f"`padding_mask` must have the shape of `token_ids`, {tuple(shape)}. Received "
            f"{mask.shape}. Give each token a number, and each pad a 0."
        )
    whole = np.issubdtype(mask.dtype, np.number) and np.array_equal(mask, mask.astype("int32"))
    if not (mask.dtype == bool or whole):
        raise ValueError(
            "`padding_mask` must be whole numbers or booleans. Received: "
            f"{mask.ravel()[:8].tolist()} ... of dtype {mask.dtype}. Write 1 at tokens and 0 at "
            "pads."
        )
    mask = mask.astype("int32")
    if (mask < 0).any():
        raise ValueError(
            "`padding_mask` must be 0 at pads and a positive document number at tokens. Received "
            f"{int(mask.min())}. Write 1 at tokens and 0 at pads."
        )
    return mask


def check_same_rows(shape: Shape, mask_shape: Shape) -> None:
    """Raises a ValueError for rows without tokens, or a mask of another shape than the ids.

    Args:
        shape, mask_shape: tuples (B, T) of ints, None for a size that is not known yet.
    """
    if shape[1] == 0:
        raise ValueError(f"`token_ids` of shape {shape} hold no token. Pass at least one a row.")
    known = [sizes for sizes in zip(shape, mask_shape, strict=True) if None not in sizes]
    if any(size != mask_size for size, mask_size in known):
        raise ValueError(
            f"`padding_mask` must have the shape of `token_ids`, {shape}. Received: {mask_shape}. "
            "Give each token a number, and each pad a 0."
        )


def check_one_document(padding_mask: np.ndarray, may_be_empty: bool = False) -> np.ndarray:
    """Returns the lengths [B] of rows, if each row of an int mask [B, T] is one document.

    Args:
        padding_mask: int array [B, T].
        may_be_empty: bool, whether a row may hold no token.

    Raises:
        ValueError: a row holds no token (unless that is allowed), or more than one document.
    """
    left = np.pad(padding_mask, ((0, 0), (1, 0)))[:, :-1]
    documents = ((padding_mask > 0) & (padding_mask != left)).sum(axis=1)
    for row, count in enumerate(documents):
        if count == 0 and not may_be_empty:
            raise ValueError(
                f"Row {row} holds no token: generation needs at least one to start from, such "
                "as the start token."
            )
        if count > 1:
            raise ValueError(
                f"Row {row} of `padding_mask` holds {count} documents (runs of equal numbers "
                "without a pad between). Generation and states take one a row: split the row."
            )
    return (padding_mask > 0).sum(axis=1)


def check_keywords(kwargs: Iterable[str], known: Sequence[str], owner: str) -> None:
    """Raises a TypeError for keyword arguments that Keras would silently ignore.

    Args:
        kwargs: dict of the arguments that the class has not taken itself.
        known: sequence of str, the arguments that Keras understands.
        owner: str, the name of the class.
    """
    for name in kwargs:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"{owner} has no argument {name!r}.{hint} See its docstring.")
