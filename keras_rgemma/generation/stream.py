"""Streams new text or tokens to a caller: the work of `stream`."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any, Self

import numpy as np

from keras_rgemma.generation.decoder import RowDecoder
from keras_rgemma.generation.generate import start
from keras_rgemma.generation.model import GenerativeModel
from keras_rgemma.generation.outputs import decode_deltas, to_arrays
from keras_rgemma.generation.programs import GenerationPrograms
from keras_rgemma.generation.prompts import read_prompts
from keras_rgemma.generation.request import Request
from keras_rgemma.state.rgemma_state import RGemmaState

TOKENS_PER_DELTA = 1


def stream(task: GenerativeModel, inputs: Any, request: Request) -> Stream:
    """See `RGemmaCausalLM.stream`."""
    batches, is_scalar = read_prompts(task, inputs, request)
    if len(batches) > 1:
        raise ValueError(
            f"`stream` takes one batch of prompts. Received {len(batches)} batches: call it for "
            "each, or `generate` for all."
        )
    (batch,) = batches
    programs = task.make_generate_function()
    check_streams(programs)
    decoder = start(task, batch, keeps_state=True, programs=programs)
    request = batch.request
    if not batch.is_text:
        deltas = _array_deltas(task, decoder, request)
    elif is_scalar:
        deltas = (text for (text,) in _text_deltas(task, decoder, request))
    else:
        deltas = _text_deltas(task, decoder, request)
    return Stream(decoder, deltas)


def check_streams(programs: GenerationPrograms) -> None:
    """Raises ValueError if the sampler of `GenerationPrograms` does not write token by token."""
    if not programs.is_stepwise:
        raise ValueError(
            f"{type(programs.sampler).__name__} decides on tokens only after it has seen later "
            "ones, so its text cannot be streamed. Use another sampler, or `generate`."
        )


class Stream:
    """Iterates over the deltas of rows, each computed when it is asked for.

    A caller that stops asking stops the work; on JAX the next token may already be computed then.

    Args:
        decoder: `RowDecoder`.
        deltas: generator of the deltas.

    Example:
    ```python
    stream = lm.stream("In the beginning", max_new_tokens=32)
    next(stream)
    stream.state.num_tokens
    ```
    """

    def __init__(self, decoder: RowDecoder, deltas: Generator[Any, None, None]) -> None:
        self._decoder, self._deltas = decoder, deltas

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        return next(self._deltas)

    def close(self) -> None:
        """Ends the text at its last token: no more deltas come.

        Example:
        ```python
        stream = lm.stream("In the beginning", max_new_tokens=32)
        next(stream)
        stream.close()
        lm.generate("", state=stream.state, max_new_tokens=8)  # goes on from there
        ```
        """
        self._deltas.close()

    @property
    def state(self) -> RGemmaState:
        """Returns the `RGemmaState` after all tokens so far, those of held back text included."""
        return self._decoder.rgemma_state()


def _text_deltas(
    task: GenerativeModel, decoder: RowDecoder, request: Request
) -> Iterator[list[str]]:
    """Yields lists of B str, except lists of empty strings alone."""
    for _, texts in decode_deltas(task, decoder, request, TOKENS_PER_DELTA):
        if any(texts):
            yield texts


def _array_deltas(
    task: GenerativeModel, decoder: RowDecoder, request: Request
) -> Iterator[dict[str, np.ndarray]]:
    """Yields dicts of `token_ids` and `padding_mask` of the new tokens alone."""
    if request.stop:
        deltas = (new for new, _ in decode_deltas(task, decoder, request, TOKENS_PER_DELTA))
    else:
        deltas = iter(lambda: None if decoder.ended else decoder.next(TOKENS_PER_DELTA), None)
    for new in deltas:
        if any(map(len, new)):
            yield to_arrays([[] for _ in new], new, 0)
