"""Continues prompts completely: the work of `generate`."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from keras_rgemma.generation.decoder import RowDecoder
from keras_rgemma.generation.many_prompts import ManyPrompts
from keras_rgemma.generation.model import GenerativeModel
from keras_rgemma.generation.outputs import decode_deltas, to_arrays, without_end_of_turn
from keras_rgemma.generation.programs import GenerationPrograms
from keras_rgemma.generation.prompts import Batch, concatenate, read_prompts
from keras_rgemma.generation.request import Request
from keras_rgemma.state.continuing import consumed_by, prepend_carried_token
from keras_rgemma.state.fingerprint import Fingerprint


def start(
    task: GenerativeModel,
    batch: Batch,
    keeps_state: bool,
    programs: GenerationPrograms | None = None,
) -> RowDecoder:
    """Runs the prompts of a batch through the model and returns their `RowDecoder`.

    Args:
        task: `GenerativeModel`.
        batch: `Batch`.
        keeps_state: bool, whether the `RGemmaState` of the rows is wanted.
        programs: `GenerationPrograms` of the model; None to ask the model for them.
    """
    programs = programs or task.make_generate_function()
    rows, request = batch.rows, batch.request
    state = request.state
    if state is None:
        fingerprint = task.fingerprint_later() if keeps_state else None
        consumed = task.initial_state(len(rows))
    else:
        check_continues(programs)
        rows, consumed = prepend_carried_token(state, rows), consumed_by(task, state)

        def fingerprint() -> Fingerprint:
            return state.fingerprint  # `consumed_by` found it to be the model's

    return RowDecoder(
        programs,
        rows,
        batch.budgets,
        request.stop_token_ids,
        consumed,
        request.copies,
        fingerprint,
    )


def decode_many(
    task: GenerativeModel, batch: Batch, programs: GenerationPrograms
) -> tuple[list[np.ndarray], list[int]]:
    """Writes all new tokens of any number of prompts, some rows at a time.

    Args:
        task: `GenerativeModel`.
        batch: `Batch` of all prompts, whose request has a `batch_size`.
        programs: `GenerationPrograms` of the model.

    Returns:
        As `ManyPrompts.run`.
    """
    state, rows = batch.request.state, batch.rows
    beginning = task.initial_state(1)
    if state is not None:
        check_continues(programs)
        beginning = consumed_by(task, state)
        rows = [prepend_carried_token(state, [row])[0] for row in rows]
    copies = range(batch.request.copies)
    rows = [row for row in rows for _ in copies]
    budgets = [budget for budget in batch.budgets for _ in copies]
    batch = dataclasses.replace(batch, rows=rows, budgets=budgets)
    return ManyPrompts(task, programs, batch, beginning, batch.request.batch_size).run()


def check_continues(programs: GenerationPrograms) -> None:
    """Raises ValueError if the sampler of `GenerationPrograms` cannot go on from a state."""
    if programs.hidden_dim:
        raise ValueError(
            "Contrastive search compares new tokens with the hidden states of the whole text, "
            "which a state does not hold. Use another sampler, or `generate` from the text."
        )


def generate(
    task: GenerativeModel, inputs: Any, request: Request, strip_prompt: bool, return_state: bool
) -> Any:
    """See `RGemmaCausalLM.generate`."""
    batches, is_scalar = read_prompts(task, inputs, request)
    if return_state and len(batches) > 1:
        raise ValueError(
            f"`return_state=True` is for one batch of prompts. Received {len(batches)} batches: "
            "call `generate` for each."
        )
    if return_state and request.batch_size:
        raise ValueError(
            "`return_state=True` is for one batch of prompts, and `batch_size` for any number of "
            "them. Call `generate` without `batch_size`, or `prefill` for the states of texts."
        )
    programs = task.make_generate_function()
    if request.batch_size and programs.has_own_loop:
        batches = _in_turn(batches[0])
    outputs = []
    for batch in batches:
        if batch.request.batch_size:
            new, surplus = decode_many(task, batch, programs)
        else:
            decoder = start(task, batch, keeps_state=return_state, programs=programs)
            new, surplus = _decode_all(task, decoder, batch.request)
        leaves_out = strip_prompt or batch.is_conversation
        prompts = [[] if leaves_out else row for row in batch.rows for _ in range(request.copies)]
        if batch.is_text:
            rows = [
                [*prompt, *without_end_of_turn(row, batch.request)]
                for prompt, row in zip(prompts, new, strict=True)
            ]
            texts = task.preprocessor.text_of(rows)
            outputs += [text[: len(text) - cut] for text, cut in zip(texts, surplus, strict=True)]
        else:
            outputs.append(to_arrays(prompts, new, batch.width))
    if isinstance(outputs[0], dict):
        outputs = concatenate(outputs)
    elif is_scalar and request.copies == 1:
        outputs = outputs[0]
    if not return_state:
        return outputs
    return outputs, decoder.rgemma_state()


def _in_turn(batch: Batch) -> list[Batch]:
    """Splits a `Batch` into those of `batch_size` prompts, for samplers that write no single row.

    Returns:
        A list of `Batch`, whose requests have no `batch_size`.
    """
    size, state = batch.request.batch_size, batch.request.state
    parts = []
    for start in range(0, len(batch.rows), size):
        rows, budgets = (x[start : start + size] for x in (batch.rows, batch.budgets))
        request = dataclasses.replace(
            batch.request, batch_size=None, state=state and state.repeat(len(rows))
        )
        parts.append(dataclasses.replace(batch, rows=rows, budgets=budgets, request=request))
    return parts


def _decode_all(
    task: GenerativeModel, decoder: RowDecoder, request: Request
) -> tuple[list[np.ndarray], list[int]]:
    """Writes all new tokens; returns those of each row, and the lengths of the text to cut off.

    Text from a stop string on is cut off.
    """
    if not request.stop:
        new = decoder.next() if not decoder.ended else [[] for _ in decoder.last_tokens]
        return new, [0 for _ in new]
    new, deltas = zip(*decode_deltas(task, decoder, request), strict=True)
    new = [np.concatenate(row) for row in zip(*new, strict=True)]
    texts = task.preprocessor.text_of([without_end_of_turn(row, request) for row in new])
    cut_texts = ["".join(row) for row in zip(*deltas, strict=True)]
    return new, [len(text) - len(cut) for text, cut in zip(texts, cut_texts, strict=True)]
