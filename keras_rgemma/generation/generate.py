"""What `generate` and `stream` do: prompts to tokens, tokens to what the prompts were given as."""

import dataclasses

import numpy as np

from keras_rgemma.generation import session
from keras_rgemma.generation.pieces import TextPieces
from keras_rgemma.generation.requests import (
    TokenBudget,
    arrays_of,
    concatenated,
    read_batches,
    read_stop,
    read_stop_token_ids,
    rows_of,
)
from keras_rgemma.generation.tokens import TokenStream
from keras_rgemma.shapes import check_padding_mask, check_token_ids

# Tokens that are written between two looks for a stop string.
_LOOK_AFTER = 8


@dataclasses.dataclass(frozen=True)
class Request:
    """How prompts are to be continued.

    Attributes:
        budget: `TokenBudget`.
        stop_token_ids: tuple of ints.
        stop: tuple of str.
        state: `RGemmaState` that each prompt goes on from, or None.
        copies: int, how many continuations each prompt gets.
    """

    budget: TokenBudget
    stop_token_ids: tuple
    stop: tuple
    state: session.RGemmaState | None
    copies: int

    @classmethod
    def of(
        cls,
        task,
        *,
        max_length=None,
        max_new_tokens=None,
        stop_token_ids="auto",
        stop=None,
        state=None,
        copies=1,
    ):
        """The request in arguments of `generate`, checked.

        Args:
            task: a `keras.Model` with `preprocessor` and `backbone`.
        """
        sequence_length = getattr(task.preprocessor, "sequence_length", None)
        return cls(
            TokenBudget(max_length, max_new_tokens, sequence_length),
            read_stop_token_ids(stop_token_ids, task.preprocessor, task.backbone.vocabulary_size),
            read_stop(stop, has_text=task.preprocessor is not None),
            state,
            copies,
        )


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
        inputs: see `requests.read_batches`.
        request: `Request`.

    Returns:
        A list of `Batch`, and whether the input was a single str.
    """
    read, is_scalar = read_batches(inputs)
    if request.state is not None and len(read) > 1:
        raise ValueError(
            f"A state holds the rows of one batch. Received {len(read)} batches: pass one, or call "
            "again with a state for each."
        )
    batches = [_read_batch(task, batch, request) for batch in read]
    if request.state is not None:
        session.check_rows(request.state, len(batches[0].rows))
    return batches, is_scalar


def _read_batch(task, batch, request):
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


def start(task, batch, request, keeps_state):
    """The `TokenStream` of a batch, with its prompts read by the model.

    Args:
        task: as of `read`.
        batch: `Batch`.
        request: `Request`.
        keeps_state: bool, whether its `session` is wanted.
    """
    programs, rows, state = task.make_generate_function(), batch.rows, request.state
    if state is None:
        fingerprint = task.fingerprint() if keeps_state else None
        consumed = task.initial_state(len(rows))
    else:
        check_continues(task)
        rows, consumed = session.behind(state, rows), session.consumed_by(task, state)
        fingerprint = state.fingerprint  # which was just found to be the model's
    return TokenStream(
        programs,
        rows,
        batch.budgets,
        request.stop_token_ids,
        consumed,
        request.copies,
        fingerprint,
    )


def check_continues(task):
    """Raises ValueError if the sampler of a model cannot go on from a state."""
    if task.make_generate_function().hidden_dim:
        raise ValueError(
            "Contrastive search compares new tokens with the hidden states of the whole text, "
            "which a state does not hold. Use another sampler, or `generate` from the text."
        )


def generate(task, inputs, request, strip_prompt, return_state):
    """See `RGemmaCausalLM.generate`."""
    batches, is_scalar = read(task, inputs, request)
    if return_state and len(batches) > 1:
        raise ValueError(
            f"`return_state=True` is for one batch of prompts. Received {len(batches)} batches: "
            "call `generate` for each."
        )
    outputs = []
    for batch in batches:
        tokens = start(task, batch, request, keeps_state=return_state)
        new, surplus = _all_tokens(task, tokens, request)
        prompts = [[] if strip_prompt else row for row in batch.rows for _ in range(request.copies)]
        if batch.is_text:
            rows = [
                [*prompt, *spoken(task, row, request)]
                for prompt, row in zip(prompts, new, strict=True)
            ]
            texts = task.preprocessor.text_of(rows)
            outputs += [text[: len(text) - cut] for text, cut in zip(texts, surplus, strict=True)]
        else:
            outputs.append(arrays_of(prompts, new, batch.width))
    if isinstance(outputs[0], dict):
        outputs = concatenated(outputs)
    elif is_scalar and request.copies == 1:
        outputs = outputs[0]
    if not return_state:
        return outputs
    return outputs, tokens.session()


def _all_tokens(task, tokens, request):
    """A list of all new tokens of each row, and how many characters stop strings cut off each."""
    if not request.stop:
        new = tokens.next() if not tokens.ended else [[] for _ in tokens.last_tokens]
        return new, [0 for _ in new]
    new, said = zip(*written(task, tokens, request), strict=True)
    new = [np.concatenate(row) for row in zip(*new, strict=True)]
    texts = task.preprocessor.text_of([spoken(task, row, request) for row in new])
    said = ["".join(row) for row in zip(*said, strict=True)]
    return new, [len(text) - len(kept) for text, kept in zip(texts, said, strict=True)]


def written(task, tokens, request, at_a_time=None):
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
        TextPieces(lambda ids: task.preprocessor.text_of([ids])[0], request.stop)
        for _ in tokens.last_tokens
    ]
    if at_a_time is None and request.stop and tokens.is_stepwise:
        at_a_time = _LOOK_AFTER
    while not tokens.ended:
        latest = tokens.next(at_a_time)
        said, kept = [], {}
        for row, text in enumerate(texts):
            piece, count = text.extend(spoken(task, latest[row], request))
            said.append(piece)
            if text.stopped and len(latest[row]):
                kept[row] = count
        if kept:
            tokens.cut(kept)
        yield [ids[: kept.get(row)] for row, ids in enumerate(latest)], said
    yield [np.zeros(0, "int32") for _ in texts], [text.rest() for text in texts]


def spoken(task, row, request):
    """New tokens without an `<end_of_turn>` that has ended them, which is no part of the text."""
    end_of_turn = getattr(task.preprocessor.tokenizer, "end_token2_id", None)
    ends = end_of_turn in request.stop_token_ids and len(row) and row[-1] == end_of_turn
    return row[:-1] if ends else row
