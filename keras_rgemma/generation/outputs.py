"""New tokens as the text or the arrays that a caller gets."""

import numpy as np

from keras_rgemma.generation.prompts import pad_right
from keras_rgemma.generation.text_deltas import TextDeltas

# Tokens that are written between two looks for a stop string.
_LOOK_AFTER = 8


def decode_deltas(task, tokens, request, at_a_time=None):
    """What a `TokenStream` writes, until every row has ended.

    Args:
        task: as of `read`.
        tokens: `TokenStream`.
        request: `Request`.
        at_a_time: int, how many tokens to write; None for all, or as many as are best where stop
            strings are looked for.

    Yields:
        A list of B int arrays, the new tokens of each row; and a list of B str, its new text.
    """
    texts = [
        TextDeltas(lambda ids: task.preprocessor.text_of([ids])[0], request.stop)
        for _ in tokens.last_tokens
    ]
    if at_a_time is None and request.stop and tokens.is_stepwise:
        at_a_time = _LOOK_AFTER
    while not tokens.ended:
        latest = tokens.next(at_a_time)
        said, kept = [], {}
        for row, text in enumerate(texts):
            piece, count = text.extend(without_end_of_turn(task, latest[row], request))
            said.append(piece)
            if text.stopped and len(latest[row]):
                kept[row] = count
        if kept:
            tokens.cut(kept)
        yield [ids[: kept.get(row)] for row, ids in enumerate(latest)], said
    yield [np.zeros(0, "int32") for _ in texts], [text.rest() for text in texts]


def without_end_of_turn(task, row, request):
    """The row without a trailing `<end_of_turn>`."""
    end_of_turn = getattr(task.preprocessor.tokenizer, "end_token2_id", None)
    ends = end_of_turn in request.stop_token_ids and len(row) and row[-1] == end_of_turn
    return row[:-1] if ends else row


def arrays_of(prompts, new, width):
    """The dict of arrays that holds prompts and new tokens, at least `width` columns wide."""
    rows = [np.array([*prompt, *row], "int32") for prompt, row in zip(prompts, new, strict=True)]
    token_ids, mask = pad_right(rows, max(width, *(len(row) for row in rows)))
    return {"token_ids": token_ids, "padding_mask": mask.astype(bool)}


def concatenated(outputs):
    """Dicts of arrays, row after row, padded to the widest."""
    width = max(output["token_ids"].shape[1] for output in outputs)
    return {
        key: np.concatenate(
            [np.pad(x[key], ((0, 0), (0, width - x[key].shape[1]))) for x in outputs]
        )
        for key in outputs[0]
    }
