"""Compiles the programs of generation and runs rows of tokens through them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_rgemma.backend import backend_module, tensor_of
from keras_rgemma.generation.compiling import Programs
from keras_rgemma.generation.decode import BLOCK, NO_TOKEN, DecodeState, put_row
from keras_rgemma.generation.model import GenerativeModel, Model, Sampler
from keras_rgemma.generation.prompts import pad_right
from keras_rgemma.generation.search import has_own_loop, search
from keras_rgemma.sharding.host import numpy_of
from keras_rgemma.state.records import ModelState
from keras_rgemma.types import Tensor

PREFILL_CHUNK = 2048
SMALLEST_CHUNK, CHUNK_GROWTH = 32, 4
SMALLEST_BUFFER, BUFFER_GROWTH = 16, 4


def buffer_size(length: int) -> int:
    """Returns the smallest buffer for `length` tokens among 16, 64, 256, ..."""
    size = SMALLEST_BUFFER
    while size < length:
        size *= BUFFER_GROWTH
    return size


def chunk_sizes(
    length: int, chunk_size: int = PREFILL_CHUNK, is_one_size: bool = False
) -> Iterator[int]:
    """Yields the sizes of a prompt's chunks: `chunk_size`, then some of 512, 128 and 32.

    A chunk that would be half empty gives way to smaller chunks, so that pads cost little.

    Args:
        length: int, the tokens of the prompt.
        chunk_size: int, the largest chunk.
        is_one_size: bool, whether all chunks have the smallest size that holds the prompt, or
            `chunk_size`: a prompt needs one program then.
    """
    smaller = [SMALLEST_CHUNK * CHUNK_GROWTH**n for n in range(8)]
    sizes = [chunk_size, *(size for size in reversed(smaller) if size < chunk_size)]
    if is_one_size:
        size = min((size for size in sizes if size >= length), default=chunk_size)
        yield from [size] * -(-length // size)
        return
    while length > 0:
        while len(sizes) > 1 and 2 * length <= sizes[0]:
            sizes.pop(0)
        yield sizes[0]
        length -= sizes[0]


class GenerationPrograms(Programs):
    """Compiles and runs prefill and decode.

    Shapes come from few sizes, so that another prompt length, limit or set of stop tokens seldom
    needs another program: prompts run in chunks of `chunk_sizes`, padded on the right, and new
    tokens come in blocks, of which `stream` asks for one token and `generate` for all. On devices
    whose compilers take a minute a program, the chunks of a prompt have one size.

    Args:
        model: `generation.model.GenerativeModel`.
        sampler: `keras_hub.samplers.Sampler`.
        fast_sampler: a sampler that gives the same tokens sooner, or None.
        hidden_dim: int, D, for samplers that compare the hidden states of the prompt with those
            of new tokens; None for the others.
        is_stepwise: bool, whether the sampler never changes a token that it has chosen.
    """

    def __init__(
        self,
        model: GenerativeModel,
        sampler: Sampler,
        fast_sampler: Sampler | None = None,
        hidden_dim: int | None = None,
        is_stepwise: bool = True,
    ) -> None:
        super().__init__(model, sampler)
        self._fast_sampler = fast_sampler or sampler
        self.hidden_dim = hidden_dim
        self.is_stepwise = is_stepwise
        self._searches = {}
        self._sizes = {}  # int32 scalars of blocks
        self._stops = {}  # int32 arrays of stop tokens

    @property
    def has_own_loop(self) -> bool:
        """Returns whether the sampler writes whole rows in a loop of its own."""
        return has_own_loop(self._fast_sampler)

    def _prefill_step(
        self, model: Model, token_ids: Tensor, padding_mask: Tensor, state: ModelState
    ) -> tuple[Tensor | tuple[()], ModelState]:
        hidden, state = model.step(token_ids, padding_mask, state)
        return (hidden if self.hidden_dim else ()), state

    def _decode_block(
        self, model: Model, stop_token_ids: Tensor, state: DecodeState, size: Tensor
    ) -> tuple[Tensor, DecodeState]:
        backend = backend_module("keras_rgemma.generation")
        return backend.decode_block(model, self._fast_sampler, stop_token_ids, state, size)

    def prefill(
        self,
        rows: Sequence[Sequence[int] | np.ndarray],
        state: ModelState,
        chunk_size: int = PREFILL_CHUNK,
        progress: Callable[[int], Any] | None = None,
    ) -> tuple[list[np.ndarray] | None, ModelState]:
        """Consumes tokens of each row.

        Args:
            rows: list of B int arrays, of any lengths, 0 included.
            state: `ModelState` of B rows.
            chunk_size: int, the most tokens of a row in one step.
            progress: function that is called with the number of tokens of the longest row after
                each chunk; hidden states are then not returned.

        Returns:
            The final hidden states, a list of B float32 arrays [T, D] (None unless the sampler
            needs them), and the new `ModelState`.
        """
        hidden = [[] for _ in rows]
        keeps_hidden = self.hidden_dim and progress is None
        start, longest = 0, max(len(row) for row in rows)
        is_one_size = backend_module("keras_rgemma.generation").compiles_slowly()
        for size in chunk_sizes(longest, chunk_size, is_one_size):
            chunks = [row[start : start + size] for row in rows]
            token_ids, mask = pad_right(chunks, size)
            chunk_hidden, state = self.compiled(self._prefill_step)(
                tensor_of(token_ids), tensor_of(mask), state
            )
            if keeps_hidden:
                chunk_hidden = numpy_of(ops.cast(chunk_hidden, "float32"))
                for row, chunk in enumerate(chunks):
                    hidden[row].append(chunk_hidden[row, : len(chunk)])
            if progress:
                progress(min(size, longest - start))
            start += size
        if not keeps_hidden:
            return None, state
        empty = np.zeros((0, self.hidden_dim), "float32")
        return [np.concatenate([empty, *chunks]) for chunks in hidden], state

    @property
    def runs_ahead(self) -> bool:
        """Returns whether a step may be dispatched before the last one has been read.

        Not with a sampler that draws: a step that nobody asks for in the end would spend its seeds.
        """
        is_asynchronous = keras.config.backend() == "jax" and not self.model.run_eagerly
        return is_asynchronous and not self._fast_sampler.variables

    def decode(
        self, rows: DecodeState, size: int, stop_token_ids: tuple[int, ...]
    ) -> tuple[list[np.ndarray], DecodeState]:
        """Writes new tokens in each row of a sampler that writes token by token.

        Args:
            rows: `DecodeState`, as of `new_rows` or of the last call.
            size: int, the most tokens that a row may get now.
            stop_token_ids: tuple of ints, may be empty.

        Returns:
            A list of B int32 arrays, the new tokens, the stop token included; and the new
            `DecodeState`.
        """
        blocks = []
        for start in range(0, size, BLOCK):
            tokens, rows = self.run_block(stop_token_ids, rows, min(BLOCK, size - start))
            blocks.append(tokens)
            if (tokens[-1] == NO_TOKEN).all():
                break
        return rows_of(np.concatenate(blocks)), rows

    def put_row(self, rows: DecodeState, row: int, one: DecodeState) -> DecodeState:
        """Puts one row into a `DecodeState`, see `generation.decode.put_row`."""
        row = ops.convert_to_tensor(row, dtype="int32")
        return self.compiled(_put_row)(rows._replace(sampler=()), row, one)

    def run_block(
        self, stop_token_ids: tuple[int, ...], rows: DecodeState, size: int
    ) -> tuple[np.ndarray, DecodeState]:
        """Writes up to `size` tokens in each row, see `generation.decode.decode_block`.

        Args:
            stop_token_ids: tuple of ints, may be empty.
            rows: `DecodeState`.
            size: int, at most `BLOCK`.

        Returns:
            int32 NumPy array [N, B], the tokens, N at most `size`; and the new `DecodeState`.
        """
        tokens, rows = self.start_block(stop_token_ids, rows, size)
        return numpy_of(tokens)[:size], rows

    def start_block(
        self, stop_token_ids: tuple[int, ...], rows: DecodeState, size: int
    ) -> tuple[Tensor, DecodeState]:
        """Does the work of `run_block`, and returns an array of the backend, [N, B].

        On JAX it may not be computed yet, nor need `rows` be.
        """
        # A program on JAX changes no variable: their values go in and come out.
        is_jax = keras.config.backend() == "jax"
        variables = self._fast_sampler.variables if is_jax else ()
        rows = rows._replace(sampler=tuple(ops.copy(variable.value) for variable in variables))
        if size not in self._sizes:
            self._sizes[size] = ops.convert_to_tensor(size, dtype="int32")
        if stop_token_ids not in self._stops:
            self._stops[stop_token_ids] = tensor_of(_padded_stops(stop_token_ids))
        program = self.compiled(self._decode_block)
        tokens, rows = program(self._stops[stop_token_ids], rows, self._sizes[size])
        for variable, value in zip(variables, rows.sampler, strict=True):
            variable.assign(value)
        return tokens, rows

    def _search_program(self, stop_token_ids: tuple[int, ...]) -> Callable[..., Any]:
        if stop_token_ids not in self._searches:

            def run(
                model: Model,
                tokens: Tensor,
                index: Tensor,
                budgets: Tensor,
                state: ModelState,
                prompt_hidden: tuple[Tensor, Tensor] | tuple[()],
            ) -> Tensor:
                return search(
                    model,
                    self.model,
                    self._fast_sampler,
                    tokens,
                    index,
                    budgets,
                    state,
                    stop_token_ids,
                    prompt_hidden,
                )

            self._searches[stop_token_ids] = self._compile(run, self._fast_sampler)
        return self._searches[stop_token_ids]

    def search(
        self,
        last_tokens: Sequence[int],
        budgets: Sequence[int],
        stop_token_ids: tuple[int, ...],
        state: ModelState,
        hidden: Sequence[np.ndarray] | None,
    ) -> list[np.ndarray]:
        """Writes all new tokens of each row in the loop of the sampler.

        Args:
            last_tokens: B ints, the last token of each row, which its state has not consumed.
            budgets: B ints, how many tokens each row may get; not all are 0.
            stop_token_ids: tuple of ints, may be empty.
            state: `ModelState` of B rows.
            hidden: list of B float32 arrays [T, D], the final hidden states of the consumed tokens,
                or None if the sampler does not need them.

        Returns:
            A list of B int32 arrays, the new tokens, the stop token included.
        """
        most = int(max(budgets))
        room = 1 + most
        if self.hidden_dim:
            room += max(len(states) for states in hidden)
        size = buffer_size(room)
        index = size - most
        # `NO_TOKEN` in the columns to write equals no stop token.
        tokens = np.full((len(last_tokens), size), NO_TOKEN, "int32")
        tokens[:, index - 1] = last_tokens
        outputs = self._search_program(stop_token_ids)(
            tensor_of(tokens),
            ops.convert_to_tensor(index, "int32"),
            tensor_of(np.array(budgets, "int32")),
            state,
            self._aligned_hidden(hidden, index, size),
        )
        outputs = numpy_of(outputs)[:, index:].astype("int32")
        return [
            until_stop(row[:budget], stop_token_ids)
            for row, budget in zip(outputs, budgets, strict=True)
        ]

    def _aligned_hidden(
        self, hidden: Sequence[np.ndarray] | None, index: int, size: int
    ) -> tuple[Tensor, Tensor] | tuple[()]:
        """Aligns hidden states to columns that end at `index - 2`, and marks these columns."""
        if not self.hidden_dim:
            return ()
        aligned = np.zeros((len(hidden), size, self.hidden_dim), "float32")
        known = np.zeros((len(hidden), size), bool)
        for row, states in enumerate(hidden):
            columns = slice(index - 1 - len(states), index - 1)
            aligned[row, columns], known[row, columns] = states, True
        dtype = self.model.compute_dtype
        return ops.convert_to_tensor(aligned, dtype), tensor_of(known)


def new_rows(
    last_tokens: Sequence[int] | np.ndarray, budgets: Sequence[int], state: ModelState
) -> DecodeState:
    """Makes the `DecodeState` of rows that have got no token yet.

    Args:
        last_tokens: B ints, the last token of each row, which its state has not consumed.
        budgets: B ints, how many tokens each row may get.
        state: `ModelState` of B rows.
    """
    last_tokens, budgets = (np.array(x, "int32") for x in (last_tokens, budgets))
    return DecodeState(*map(tensor_of, (last_tokens, budgets <= 0, budgets)), state)


def _put_row(model: Any, rows: DecodeState, row: Tensor, one: DecodeState) -> DecodeState:
    return put_row(rows, row, one)


def rows_of(tokens: np.ndarray) -> list[np.ndarray]:
    """Splits tokens [N, B] of blocks into a list of B arrays, without `NO_TOKEN`."""
    return [column[column != NO_TOKEN] for column in tokens.T]


def until_stop(row: np.ndarray, stop_token_ids: tuple[int, ...]) -> np.ndarray:
    """Returns a row of tokens up to its first stop token, that token included."""
    stops = np.flatnonzero(np.isin(row, stop_token_ids))
    return row[: stops[0] + 1] if len(stops) else row


def _padded_stops(stop_token_ids: tuple[int, ...]) -> np.ndarray:
    """Pads stop tokens with `NO_TOKEN` to an int32 array of one of few sizes: 4, 16, 64, ..."""
    size = 4
    while size < len(stop_token_ids):
        size *= 4
    return np.array([*stop_token_ids, *[NO_TOKEN] * (size - len(stop_token_ids))], "int32")
