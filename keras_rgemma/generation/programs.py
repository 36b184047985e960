"""The compiled programs of generation, and rows of tokens run through them."""

import operator

import keras
import numpy as np
from keras import ops

from keras_rgemma.backend import backend_module
from keras_rgemma.generation.decode import sample
from keras_rgemma.generation.prompts import pad_right

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
        """A function of arrays as a program."""
        if function not in self._compiled:
            self._compiled[function] = self._compile(function)
        return self._compiled[function]

    @property
    def num_compiled(self):
        """How many programs were compiled, int; one function has one for each shape."""
        return sum(program.count() for program in self._made)

    def _compile(self, function):
        if self.model.run_eagerly and keras.config.backend() != "torch":
            return function
        backend = backend_module("keras_rgemma.generation")
        self._made.append(
            backend.compile_program(function, self.model, self.sampler, self.model.jit_compile)
        )
        return self._made[-1]


def _settings(model, sampler):
    # The objects and not their ids: an id is given again once its object is gone.
    settings = (model.dtype_policy, model.run_eagerly, model.jit_compile)
    return (*model.compile_key(), sampler, *settings)


class GenerationPrograms(Programs):
    """Prefill and decode.

    Shapes come from few sizes, so that another prompt length or another limit seldom needs another
    program: prompts run in pieces of `piece_sizes`, padded on the right, and new tokens are written
    at the end of a buffer whose size is a power of four, from whatever column leaves just enough
    room.

    Args:
        model: a `keras.Model` as `decode.sample` takes, with `initial_state(batch_size)`.
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
        self._decoders = {}

    def _prefill_step(self, token_ids, padding_mask, state):
        hidden, state = self.model.step(token_ids, padding_mask, state)
        return (hidden if self.hidden_dim else ()), state

    def _decode_program(self, stop_token_ids):
        if stop_token_ids not in self._decoders:

            def decode(tokens, index, budgets, state, prompt_hidden):
                return sample(
                    self.model,
                    self.runs,
                    tokens,
                    index,
                    budgets,
                    state,
                    stop_token_ids,
                    prompt_hidden,
                )

            self._decoders[stop_token_ids] = self._compile(decode)
        return self._decoders[stop_token_ids]

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
        """New tokens for each row.

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
            sampler from which it cannot be had.
        """
        most = int(max(budgets))
        if most == 0:
            return [np.zeros(0, "int32") for _ in last_tokens], state
        room = 1 + most
        if self.hidden_dim:
            room += max(len(states) for states in hidden)
        size = bucket(room)
        index = size - most
        # Nothing that could pass for a stop token stands where tokens are still to be written.
        tokens = np.full((len(last_tokens), size), -1, "int32")
        tokens[:, index - 1] = last_tokens
        written, state = self._decode_program(stop_token_ids)(
            ops.convert_to_tensor(tokens),
            ops.convert_to_tensor(index, "int32"),
            ops.convert_to_tensor(np.array(budgets, "int32")),
            state,
            self._aligned_hidden(hidden, index, size),
        )
        written = ops.convert_to_numpy(written)[:, index:].astype("int32")
        new = [
            until_stop(row[:budget], stop_token_ids)
            for row, budget in zip(written, budgets, strict=True)
        ]
        return new, state or None

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
