"""Prompts in every form that `generate` takes, as rows of token ids."""

import dataclasses

import numpy as np

from keras_rgemma.shapes import (
    as_array,
    check_one_document,
    check_padding_mask,
    check_text,
    check_token_ids,
)
from keras_rgemma.state.rgemma_state import check_rows


@dataclasses.dataclass(frozen=True)
class Batch:
    """The prompts of one batch.

    Attributes:
        rows: list of B int arrays, the tokens of the prompts.
        budgets: list of B ints, how many new tokens each may get.
        is_text: bool, whether they were given as text.
        width: int, the columns of the array that they were given in; 0 for text.
    """

    rows: list
    budgets: list
    is_text: bool
    width: int = 0


def read(task, inputs, request):
    """The prompts in what was given to `generate` or `stream`.

    Args:
        task: a `keras.Model` with `preprocessor` and `backbone`.
        inputs: see `read_batches`.
        request: `Request`.

    Returns:
        A list of `Batch`, and whether the input was a single str.
    """
    inputs, is_scalar = read_batches(inputs)
    if request.state is not None and len(inputs) > 1:
        raise ValueError(
            f"A state holds the rows of one batch. Received {len(inputs)} batches: pass one, or "
            "call again with a state for each."
        )
    batches = [_to_batch(task, batch, request) for batch in inputs]
    if request.state is not None:
        check_rows(request.state, len(batches[0].rows))
    return batches, is_scalar


def _to_batch(task, batch, request):
    rows, width = rows_in(task, batch, request.state is not None)
    budgets = request.budget.of([len(row) for row in rows], default_length=width)
    return Batch(rows, budgets, is_text=width is None, width=width or 0)


def rows_in(task, batch, continued):
    """The tokens of the rows of a batch.

    Args:
        task: as of `read`.
        batch: list of str, or dict of arrays.
        continued: bool, whether the rows go on from a state.

    Returns:
        A list of B int arrays; and the columns of the array they came in, None for text.
    """
    if not isinstance(batch, dict):
        return task.text_preprocessor(batch[0]).prompt_token_ids(batch, continued), None
    if "token_ids" not in batch:
        raise ValueError(
            "A dict of inputs must hold `token_ids`, and `padding_mask` if rows are padded. "
            f"Received the keys {sorted(batch)}."
        )
    token_ids = check_token_ids(batch["token_ids"], task.backbone.vocabulary_size)
    mask = check_padding_mask(batch.get("padding_mask"), token_ids.shape)
    return rows_of(token_ids, mask, may_be_empty=continued), token_ids.shape[1]


def read_batches(inputs):
    """The batches in what was given to `generate`.

    Args:
        inputs: str, sequence or array of str, dict of arrays, or `tf.data.Dataset` of such.

    Returns:
        A list of batches, each a list of str or a dict of arrays, and whether the input was a
        single str.

    Raises:
        ValueError: there is nothing in it.
        TypeError: it is none of these.
    """
    if hasattr(inputs, "as_numpy_iterator"):
        batches = [_read_batch(batch)[0] for batch in inputs.as_numpy_iterator()]
        is_scalar = False
    else:
        batch, is_scalar = _read_batch(inputs)
        batches = [batch]
    if not batches or not all(batches):
        raise ValueError(
            f"`generate` needs at least one prompt. Received: {inputs!r}. For text from nothing "
            "but the start token, pass an empty string: ''."
        )
    return batches, is_scalar


def _read_batch(inputs):
    if isinstance(inputs, dict):
        # Left out is the same as None.
        return {k: as_array(v, k) for k, v in inputs.items() if v is not None}, False
    if isinstance(inputs, (str, bytes)):
        return [check_text(inputs)], True
    if hasattr(inputs, "numpy"):
        inputs = inputs.numpy()
        if isinstance(inputs, bytes):
            return [check_text(inputs)], True
    if isinstance(inputs, np.ndarray):
        inputs = inputs.tolist() if inputs.ndim else [inputs.item()]
    if not isinstance(inputs, (list, tuple)):
        raise TypeError(
            "Prompts are a str, a list of str, a dict of arrays or a tf.data.Dataset. "
            f"Received: {inputs!r} of type {type(inputs).__name__}."
        )
    return [check_text(text) for text in inputs], False


def rows_of(token_ids, padding_mask, may_be_empty=False):
    """The tokens of each row without its pads.

    Args:
        token_ids: int32 [B, T].
        padding_mask: int32 [B, T].
        may_be_empty: bool, whether a row may hold no token, as behind a state.

    Raises:
        ValueError: a row holds no token, or several documents.
    """
    check_one_document(padding_mask, may_be_empty)
    return [ids[mask > 0] for ids, mask in zip(token_ids, padding_mask, strict=True)]


def pad_right(rows, size):
    """Token ids and padding mask, int32 [B, size], of rows of at most `size` tokens."""
    token_ids = np.zeros((len(rows), size), "int32")
    mask = np.zeros((len(rows), size), "int32")
    for i, row in enumerate(rows):
        token_ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return token_ids, mask
