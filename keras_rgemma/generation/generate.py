"""Continues prompts completely: the work of `generate`."""

import numpy as np

from keras_rgemma.generation.decoder import TokenStream
from keras_rgemma.generation.outputs import (
    arrays_of,
    concatenated,
    decode_deltas,
    without_end_of_turn,
)
from keras_rgemma.generation.prompts import read
from keras_rgemma.state.rgemma_state import consumed_by, prepend_carried_token


def start(task, batch, request, keeps_state, programs=None):
    """Reads the prompts of a batch and returns its `TokenStream`.

    Args:
        task: `GenerativeModel`.
        batch: `Batch`.
        request: `Request`.
        keeps_state: bool, whether its `session` is wanted.
        programs: `GenerationPrograms` of the model; None to ask it for them.
    """
    programs = programs or task.make_generate_function()
    rows, state = batch.rows, request.state
    if state is None:
        fingerprint = task.fingerprint() if keeps_state else None
        consumed = task.initial_state(len(rows))
    else:
        check_continues(programs)
        rows, consumed = prepend_carried_token(state, rows), consumed_by(task, state)
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


def check_continues(programs):
    """Raises ValueError if the sampler of `GenerationPrograms` cannot go on from a state."""
    if programs.hidden_dim:
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
                [*prompt, *without_end_of_turn(task, row, request)]
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
    new, said = zip(*decode_deltas(task, tokens, request), strict=True)
    new = [np.concatenate(row) for row in zip(*new, strict=True)]
    texts = task.preprocessor.text_of([without_end_of_turn(task, row, request) for row in new])
    said = ["".join(row) for row in zip(*said, strict=True)]
    return new, [len(text) - len(kept) for text, kept in zip(texts, said, strict=True)]
