"""Turns prompts in every form that `generate` takes into rows of token ids."""

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
    """Holds the prompts of one batch.

    Attributes:
        rows: list of B int arrays, the tokens of the prompts.
        budgets: list of B ints, how many new tokens each may get.
        is_text: bool, whether the caller passed text.
        width: int, the columns of the array that the caller passed; 0 for text.
    """

    rows: list
    budgets: list
    is_text: bool
    width: int = 0


def read_prompts(task, inputs, request):
    """Reads the prompts in an input of `generate` or `stream`.

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
    rows, width = token_rows(task, batch, request.state is not None)
    budgets = request.budget.of([len(row) for row in rows], default_length=width)
    return Batch(rows, budgets, is_text=width is None, width=width or 0)


def token_rows(task, batch, continued):
    """Returns the tokens of each row of a batch.

    Args:
        task: as of `read_prompts`.
        batch: list of str, or dict of arrays.
        continued: bool, whether the rows continue from a state.

    Returns:
        A list of B int arrays; and the number of columns of the array in the batch, None for text.
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
    return without_pads(token_ids, mask, may_be_empty=continued), token_ids.shape[1]


def read_batches(inputs):
    """Splits an input of `generate` into batches.

    Args:
        inputs: str, sequence or array of str, dict of arrays, or `tf.data.Dataset` of such.

    Returns:
        A list of batches, each a list of str or a dict of arrays, and whether the input was a
        single str.

    Raises:
        ValueError: the input is empty.
        TypeError: the input is none of these.
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
        # A key with the value None is the same as no key.
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


def without_pads(token_ids, padding_mask, may_be_empty=False):
    """Returns the tokens of each row without its pads, a list of arrays.

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
    """Pads rows of at most `size` tokens; returns token ids and a mask, int32 [B, size]."""
    token_ids = np.zeros((len(rows), size), "int32")
    mask = np.zeros((len(rows), size), "int32")
    for i, row in enumerate(rows):
        token_ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return token_ids, mask
