"""The compiled programs of generation, and rows of tokens run through them."""

import functools
import operator

import keras
import numpy as np
from keras import ops

from keras_rgemma.backend import backend_module
from keras_rgemma.generation.decode import BLOCK, NO_TOKEN, DecodeState
from keras_rgemma.generation.prompts import pad_right
from keras_rgemma.generation.search import has_own_loop, search

PREFILL_CHUNK = 2048
SMALLEST_PIECE, PIECE_GROWTH = 32, 4
SMALLEST_BUCKET, BUCKET_GROWTH = 16, 4
LARGEST_STEP = 256


def bucket(length):
    """The size of a buffer for new tokens: the smallest of 16, 64, 256, ... with that much room."""
    size = SMALLEST_BUCKET
    while size < length:
        size *= BUCKET_GROWTH
    return size


def piece_sizes(length, chunk_size=PREFILL_CHUNK):
    """The sizes of the pieces that a prompt runs in: `chunk_size`, then some of 512, 128 and 32.

    A piece that would be half empty gives way to smaller ones, so that pads cost little.

    Args:
        length: int, the tokens of the prompt.
        chunk_size: int, the largest piece.
    """
    sizes = [chunk_size]
    smaller = [SMALLEST_PIECE * PIECE_GROWTH**n for n in range(8)]
    sizes += [size for size in reversed(smaller) if size < chunk_size]
    while length > 0:
        while len(sizes) > 1 and 2 * length <= sizes[0]:
            sizes.pop(0)
        yield sizes[0]
        length -= sizes[0]


def padded_length(length):
    """The length that a row is padded to for scoring: a power of two, later a multiple of 256."""
    power = max(SMALLEST_BUCKET, 1 << (length - 1).bit_length())
    return min(power, -(-length // LARGEST_STEP) * LARGEST_STEP)


class Programs:
    """Functions of arrays that read a model's weights, each compiled once a shape.

    Args:
        model: `keras.Model`. Its `jit_compile` says whether TensorFlow uses XLA, its `run_eagerly`
            whether nothing is compiled, for debugging.
        sampler: `keras_hub.samplers.Sampler` that the functions call, or None.
    """

    def __init__(self, model, sampler=None):
        self.model = model
        self.sampler = sampler
        self._made_for = _settings(model, sampler)
        self._sampler_config = sampler and sampler.get_config()
        self._compiled = {}
        self._made = []

    def are_for(self, model, sampler=None):
        """Whether they were made for these very weights and settings."""
        settings = _settings(model, sampler)
        if sampler and sampler.get_config() != self._sampler_config:
            return False
        return len(settings) == len(self._made_for) and all(
            map(operator.is_, settings, self._made_for)
        )

    def compiled(self, function):
        """Returns a function of the model and of arrays as a program of the arrays."""
        if function not in self._compiled:
            self._compiled[function] = self._compile(function)
        return self._compiled[function]

    @property
    def num_compiled(self):
        """How many programs were compiled, int; one function has one for each shape."""
        return sum(program.count() for program in self._made)

    def _compile(self, function, sampler=None):
        backend = backend_module("keras_rgemma.generation")
        if self.model.run_eagerly and keras.config.backend() != "torch":
            return functools.partial(function, self.model)
        program = backend.compile_program(function, self.model, sampler, self.model.jit_compile)
        self._made.append(program)
        return program


def _settings(model, sampler):
    # The objects and not their ids: an id is given again once its object is gone.
    settings = (model.dtype_policy, model.run_eagerly, model.jit_compile)
    return (*model.compile_key(), sampler, *settings)


class GenerationPrograms(Programs):
    """Prefill and decode.

    Shapes come from few sizes, so that another prompt length, limit or set of stop tokens seldom
    needs another program: prompts run in pieces of `piece_sizes`, padded on the right, and new
    tokens come in blocks, of which `stream` asks for one token and `generate` for all.

    Args:
        model: `generation.model.GenerativeModel`.
        sampler: `keras_hub.samplers.Sampler`.
        runs: the sampler that is called in its place, if another gives the same tokens sooner.
        hidden_dim: int, D, for samplers that compare the hidden states of the prompt with those
            of new tokens; None for the others, which are not given any.
        is_stepwise: bool, whether the sampler is done with a token as soon as it has chosen it.
    """

    def __init__(self, model, sampler, runs=None, hidden_dim=None, is_stepwise=True):
        super().__init__(model, sampler)
        self.runs = runs or sampler
        self.hidden_dim = hidden_dim
        self.is_stepwise = is_stepwise
        self._searches = {}

    def _prefill_step(self, model, token_ids, padding_mask, state):
        hidden, state = model.step(token_ids, padding_mask, state)
        return (hidden if self.hidden_dim else ()), state

    def _decode_block(self, model, stop_token_ids, state, size):
        backend = backend_module("keras_rgemma.generation")
        return backend.decode_block(model, self.runs, stop_token_ids, state, size)

    def prefill(self, rows, state, chunk_size=PREFILL_CHUNK, progress=None):
        """Runs tokens through the model.

        Args:
            rows: list of B int arrays, of any lengths, 0 included.
            state: `ModelState` of B rows.
            chunk_size: int, the most tokens of a row in one step.
            progress: function that is told how many tokens of the longest row were run; hidden
                states are not kept then.

        Returns:
            The final hidden states, a list of B float32 arrays [T, D] (None unless the sampler
            needs them), and the new `ModelState`.
        """
        hidden = [[] for _ in rows]
        keeps_hidden = self.hidden_dim and progress is None
        start, longest = 0, max(len(row) for row in rows)
        for size in piece_sizes(longest, chunk_size):
            pieces = [row[start : start + size] for row in rows]
            token_ids, mask = pad_right(pieces, size)
            piece_hidden, state = self.compiled(self._prefill_step)(
                ops.convert_to_tensor(token_ids), ops.convert_to_tensor(mask), state
            )
            if keeps_hidden:
                piece_hidden = ops.convert_to_numpy(ops.cast(piece_hidden, "float32"))
                for row, piece in enumerate(pieces):
                    hidden[row].append(piece_hidden[row, : len(piece)])
            if progress:
                progress(min(size, longest - start))
            start += size
        if not keeps_hidden:
            return None, state
        nothing = np.zeros((0, self.hidden_dim), "float32")
        return [np.concatenate([nothing, *pieces]) for pieces in hidden], state

    def decode(self, last_tokens, budgets, stop_token_ids, state, hidden=None):
        """Writes new tokens for each row.

        Args:
            last_tokens: B ints, the token of each row that its state has not consumed.
            budgets: B ints, how many tokens each row may get.
            stop_token_ids: tuple of ints, may be empty.
            state: `ModelState` of B rows.
            hidden: list of B float32 arrays [T, D], the final hidden states of what the state has
                consumed, if the sampler needs them.

        Returns:
            A list of B int32 arrays, the new tokens, the stop token included; and the `ModelState`
            that has consumed all of each row but its last token. None in place of that with a
            sampler that has a loop of its own.
        """
        most = int(max(budgets))
        if most == 0:
            return [np.zeros(0, "int32") for _ in last_tokens], state
        if has_own_loop(self.runs):
            return self._search(last_tokens, budgets, stop_token_ids, state, hidden), None
        budgets = np.array(budgets, "int32")
        rows = DecodeState(
            ops.convert_to_tensor(np.array(last_tokens, "int32")),
            ops.convert_to_tensor(budgets <= 0),
            ops.convert_to_tensor(budgets),
            state,
        )
        stops = ops.convert_to_tensor(padded_stops(stop_token_ids))
        blocks = []
        for start in range(0, most, BLOCK):
            tokens, rows = self._run_block(stops, rows, min(BLOCK, most - start))
            blocks.append(tokens)
            if (tokens[-1] == NO_TOKEN).all():
                break
        columns = np.concatenate(blocks)
        return [column[column != NO_TOKEN] for column in columns.T], rows.model

    def _run_block(self, stop_token_ids, rows, size):
        # A program on JAX changes no variable: their values go in and come out.
        variables = self.runs.variables if keras.config.backend() == "jax" else ()
        rows = rows._replace(sampler=tuple(ops.copy(variable.value) for variable in variables))
        tokens, rows = self.compiled(self._decode_block)(
            stop_token_ids, rows, ops.convert_to_tensor(size, dtype="int32")
        )
        for variable, value in zip(variables, rows.sampler, strict=True):
            variable.assign(value)
        return ops.convert_to_numpy(tokens)[:size], rows

    def _search_program(self, stop_token_ids):
        if stop_token_ids not in self._searches:

            def run(model, tokens, index, budgets, state, prompt_hidden):
                return search(
                    model,
                    self.model,
                    self.runs,
                    tokens,
                    index,
                    budgets,
                    state,
                    stop_token_ids,
                    prompt_hidden,
                )

            self._searches[stop_token_ids] = self._compile(run, self.runs)
        return self._searches[stop_token_ids]

    def _search(self, last_tokens, budgets, stop_token_ids, state, hidden):
        """The new tokens of `decode`, from the loop of the sampler."""
        most = int(max(budgets))
        room = 1 + most
        if self.hidden_dim:
            room += max(len(states) for states in hidden)
        size = bucket(room)
        index = size - most
        # Nothing that could pass for a stop token stands where tokens are still to be written.
        tokens = np.full((len(last_tokens), size), NO_TOKEN, "int32")
        tokens[:, index - 1] = last_tokens
        written = self._search_program(stop_token_ids)(
            ops.convert_to_tensor(tokens),
            ops.convert_to_tensor(index, "int32"),
            ops.convert_to_tensor(np.array(budgets, "int32")),
            state,
            self._aligned_hidden(hidden, index, size),
        )
        written = ops.convert_to_numpy(written)[:, index:].astype("int32")
        return [
            until_stop(row[:budget], stop_token_ids)
            for row, budget in zip(written, budgets, strict=True)
        ]

    def _aligned_hidden(self, hidden, index, size):
        """The hidden states in columns that end at `index - 2`, and where they are."""
        if not self.hidden_dim:
            return ()
        aligned = np.zeros((len(hidden), size, self.hidden_dim), "float32")
        known = np.zeros((len(hidden), size), bool)
        for row, states in enumerate(hidden):
            columns = slice(index - 1 - len(states), index - 1)
            aligned[row, columns], known[row, columns] = states, True
        dtype = self.model.compute_dtype
        return ops.convert_to_tensor(aligned, dtype), ops.convert_to_tensor(known)


def until_stop(row, stop_token_ids):
    """A row of tokens up to and with its first stop token."""
    stops = np.flatnonzero(np.isin(row, stop_token_ids))
    return row[: stops[0] + 1] if len(stops) else row


def padded_stops(stop_token_ids):
    """Stop tokens as an int32 array of few sizes, 4, 16, 64, ..., filled with `NO_TOKEN`."""
    size = 4
    while size < len(stop_token_ids):
        size *= 4
    return np.array([*stop_token_ids, *[NO_TOKEN] * (size - len(stop_token_ids))], "int32")
