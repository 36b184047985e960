"""Turns new tokens into the text or the arrays that a caller gets."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from keras_rgemma.generation.decoder import RowDecoder
from keras_rgemma.generation.model import GenerativeModel
from keras_rgemma.generation.prompts import pad_right
from keras_rgemma.generation.request import Request
from keras_rgemma.generation.text_deltas import TextDeltas

_TOKENS_PER_STOP_CHECK = 8


def decode_deltas(
    task: GenerativeModel,
    decoder: RowDecoder,
    request: Request,
    tokens_per_delta: int | None = None,
) -> Iterator[tuple[list[np.ndarray], list[str]]]:
    """Runs a `RowDecoder` until every row has ended, and yields its tokens and text.

    Args:
        task: `GenerativeModel` with a preprocessor.
        decoder: `RowDecoder`.
        request: `Request`.
        tokens_per_delta: int, the most tokens of a row in one delta; None for all, or for a number
            that suits the search for stop strings.

    Yields:
        A list of B int arrays, the new tokens of each row; and a list of B str, the deltas.
    """
    texts = [
        TextDeltas(lambda ids: task.preprocessor.text_of([ids])[0], request.stop)
        for _ in decoder.last_tokens
    ]
    if tokens_per_delta is None and request.stop and decoder.is_stepwise:
        tokens_per_delta = _TOKENS_PER_STOP_CHECK
    while not decoder.ended:
        new = decoder.next(tokens_per_delta)
        deltas, cut_counts = [], {}
        for row, text in enumerate(texts):
            delta, count = text.extend(without_end_of_turn(new[row], request))
            deltas.append(delta)
            if text.stopped and len(new[row]):
                cut_counts[row] = count
        if cut_counts:
            decoder.cut(cut_counts)
        yield [ids[: cut_counts.get(row)] for row, ids in enumerate(new)], deltas
    yield [np.zeros(0, "int32") for _ in texts], [text.rest() for text in texts]


def without_end_of_turn(row: np.ndarray, request: Request) -> np.ndarray:
    """Returns the row without a trailing `<end_of_turn>`, if that token ends rows.

    In a conversation `<start_of_turn>` is such a token, too.
    """
    return row[:-1] if len(row) and int(row[-1]) in request.unwritten else row


def to_arrays(
    prompts: Iterable[Sequence[int] | np.ndarray], new: Iterable[np.ndarray], width: int
) -> dict[str, np.ndarray]:
    """Returns the dict of arrays of prompts and new tokens, at least `width` columns wide."""
    rows = [np.array([*prompt, *row], "int32") for prompt, row in zip(prompts, new, strict=True)]
    token_ids, mask = pad_right(rows, max(width, *(len(row) for row in rows)))
    return {"token_ids": token_ids, "padding_mask": mask.astype(bool)}
