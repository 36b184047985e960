"""Turns prompts into rows of token ids."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_rgemma.backend import tensor_of
from keras_rgemma.generation.inputs import is_of_conversations, read_batches
from keras_rgemma.generation.model import GenerativeModel
from keras_rgemma.generation.request import Request
from keras_rgemma.shapes import check_one_document, check_padding_mask, check_token_ids
from keras_rgemma.sharding.host import numpy_of
from keras_rgemma.state.continuing import check_rows
from keras_rgemma.state.rgemma_state import RGemmaState
from keras_rgemma.text.conversation import check_ends, turns_token_ids


@dataclasses.dataclass(frozen=True)
class Batch:
    """Holds the prompts of one batch.

    Attributes:
        rows: list of B int arrays, the tokens of the prompts.
        budgets: list of B ints, how many new tokens each may get.
        request: `Request` for these rows.
        is_text: bool, whether the caller passed text.
        is_conversation: bool, whether the caller passed messages, which get answers.
        width: int, the columns of the array that the caller passed; 0 for text.
    """

    rows: list[np.ndarray]
    budgets: list[int]
    request: Request
    is_text: bool
    is_conversation: bool = False
    width: int = 0


def read_prompts(task: GenerativeModel, inputs: Any, request: Request) -> tuple[list[Batch], bool]:
    """Reads the prompts in an input of `generate` or `stream`.

    Args:
        task: a `keras.Model` with `preprocessor` and `backbone`.
        inputs: see `read_batches`.
        request: `Request`.

    Returns:
        A list of `Batch`, and whether the input was a single text or conversation.
    """
    inputs, is_scalar = read_batches(inputs, _columns(task))
    if request.batch_size:
        inputs = [_joined(inputs)]
    if request.state is not None and len(inputs) > 1:
        raise ValueError(
            f"A state holds the rows of one batch. Received {len(inputs)} batches: pass one, or "
            "call again with a state for each."
        )
    return [to_batch(task, batch, request) for batch in inputs], is_scalar


def to_batch(task: GenerativeModel, batch: Any, request: Request) -> Batch:
    """Makes the `Batch` of one of the batches that `read_batches` returns."""
    has_messages, width = is_of_conversations(batch), None
    if has_messages:
        for turns in batch:
            check_ends(turns, "user", "A conversation to answer")
        rows, state = conversation_rows(task, batch, request.state, request.shares_state)
        request = dataclasses.replace(request.of_answers(_tokenizer(task, batch)), state=state)
    else:
        rows, width = token_rows(task, batch, request.state is not None)
    if request.state is not None and not request.shares_state:
        check_rows(request.state, len(rows))
    budgets = request.budget.of([len(row) for row in rows], default_length=width)
    return Batch(rows, budgets, request, width is None, has_messages, width or 0)


def token_rows(
    task: GenerativeModel, batch: Any, continued: bool
) -> tuple[list[np.ndarray], int | None]:
    """Returns the tokens of each row of a batch of texts or arrays.

    Args:
        task: as of `read_prompts`.
        batch: list of str, or dict of arrays.
        continued: bool, whether the rows continue from a state.

    Returns:
        A list of B int arrays; and the number of columns of the array in the batch, None for text.
    """
    if not isinstance(batch, dict):
        return task.text_preprocessor(batch[0]).prompt_token_ids(batch, continued), None
    token_ids = check_token_ids(batch["token_ids"], task.backbone.vocabulary_size)
    mask = check_padding_mask(batch.get("padding_mask"), token_ids.shape)
    return without_pads(token_ids, mask, may_be_empty=continued), token_ids.shape[1]


def input_rows(
    task: GenerativeModel, inputs: Any, state: RGemmaState | None = None, continued: bool = False
) -> tuple[list[np.ndarray], RGemmaState | None]:
    """Returns the tokens of each row of an input that is one batch.

    Args:
        task: as of `read_prompts`.
        inputs: see `read_batches`.
        state: `RGemmaState` that the rows continue from, or None.
        continued: bool, whether the rows continue from other rows.

    Returns:
        A list of B int arrays, and the state for them.
    """
    batches, _ = read_batches(inputs, _columns(task))
    if len(batches) > 1:
        raise ValueError(f"Expected one batch. Received {len(batches)}: pass them one by one.")
    (batch,) = batches
    if is_of_conversations(batch):
        return conversation_rows(task, batch, state)
    rows, _ = token_rows(task, batch, continued or state is not None)
    return rows, state


def conversation_rows(
    task: GenerativeModel,
    conversations: Sequence[list[dict[str, str]]],
    state: RGemmaState | None = None,
    shares_state: bool = False,
) -> tuple[list[np.ndarray], RGemmaState | None]:
    """Returns the tokens of each of several conversations.

    Where the last turn is the user's, the row ends with the heading of the model's answer.

    Args:
        task: as of `read_prompts`.
        conversations: list of lists of turns, as of `read_messages`.
        state: `RGemmaState` that the rows continue from. A turn that its text has begun is ended.
        shares_state: bool, whether all rows continue from the one row of the state.

    Returns:
        A list of B int arrays, and the state for them.
    """
    tokenizer = _tokenizer(task, conversations)
    beginnings = [[tokenizer.start_token_id] for _ in conversations]
    is_first = [True for _ in conversations]
    if state is not None:
        if not shares_state:
            check_rows(state, len(conversations))
        state, beginnings, is_first = _end_turns(tokenizer, state)
        if shares_state:
            beginnings, is_first = (x * len(conversations) for x in (beginnings, is_first))
    rows = []
    for ids, turns, first in zip(beginnings, conversations, is_first, strict=True):
        ids = ids + turns_token_ids(tokenizer, turns, first)
        if turns[-1]["role"] == "user":
            ids += tokenizer.turn_token_ids("model", "")
        rows.append(np.array(ids, "int32"))
    return rows, state


def _end_turns(
    tokenizer: Any, state: RGemmaState
) -> tuple[RGemmaState, list[list[int]], list[bool]]:
    """Ends the turns in the texts of a state.

    Returns:
        The state, where another token that ended an answer has become an `<end_of_turn>`; a list of
        the token ids that each row lacks before its next turn; and a list of bools, whether that is
        the first turn of the text.
    """
    start_of_turn, end_of_turn = tokenizer.control_token_ids()
    is_first = state.num_tokens == 1  # the start token
    last = numpy_of(state.last_token_ids)
    # The state has not consumed its last tokens, so other tokens can replace them.
    others = ~is_first & np.isin(last, [tokenizer.end_token_id, start_of_turn])
    if others.any():
        last = np.where(others, end_of_turn, last).astype("int32")
        state = dataclasses.replace(state, last_token_ids=tensor_of(last))
    is_ended = is_first | (last == end_of_turn)
    return state, [[] if ended else [end_of_turn] for ended in is_ended], is_first.tolist()


def _columns(task: GenerativeModel) -> Mapping[str, str] | None:
    """Returns the `columns` of the preprocessor, a dict or None."""
    return getattr(task.preprocessor, "columns", None)


def _tokenizer(task: GenerativeModel, conversations: Sequence[list[dict[str, str]]]) -> Any:
    return task.text_preprocessor(conversations[0][0]["content"]).tokenizer


def without_pads(
    token_ids: np.ndarray, padding_mask: np.ndarray, may_be_empty: bool = False
) -> list[np.ndarray]:
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


def pad_right(
    rows: Sequence[Sequence[int] | np.ndarray], size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pads rows of at most `size` tokens; returns token ids and a mask, int32 [B, size]."""
    token_ids = np.zeros((len(rows), size), "int32")
    mask = np.zeros((len(rows), size), "int32")
    for i, row in enumerate(rows):
        token_ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return token_ids, mask


def concatenate(batches: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Joins the rows of several dicts of arrays, padded to the widest."""
    width = max(batch["token_ids"].shape[1] for batch in batches)
    return {
        key: np.concatenate(
            [np.pad(x[key], ((0, 0), (0, width - x[key].shape[1]))) for x in batches]
        )
        for key in batches[0]
    }


def _joined(batches: list[Any]) -> Any:
    """Joins batches of `read_batches` to one.

    Raises:
        ValueError: they are of several kinds.
    """
    if len(batches) == 1:
        return batches[0]
    if len({type(x) for x in batches}) > 1 or len(set(map(is_of_conversations, batches))) > 1:
        raise ValueError(
            "The batches of a dataset must be all texts, all messages or all arrays. Received "
            "several kinds: call once for each."
        )
    if isinstance(batches[0], list):
        return [prompt for batch in batches for prompt in batch]
    return concatenate([{"padding_mask": np.ones_like(x["token_ids"]), **x} for x in batches])
