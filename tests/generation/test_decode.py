"""The decode step as data: rows move in and out, and samplers of a user's own work through it."""

import functools

import keras
import keras_hub
import numpy as np
import pytest
from keras import ops

import tiny
from compiled import program
from generation import plain
from keras_rgemma.generation.decode import (
    BLOCK,
    NO_TOKEN,
    DecodeState,
    decode_step,
    put_row,
    take_row,
)

STOPS = np.full((4,), NO_TOKEN, "int32")
PROMPTS = [[5, 9, 33, 7], [11, 2], [40, 41, 42, 43, 44, 45, 46]]


@pytest.fixture(scope="module")
def lm():
    return plain.lively_model()


def state_of(lm, prompts, budget=20):
    """The `DecodeState` of rows, each with its last token to come."""
    programs = lm.make_generate_function()
    _, state = programs.prefill([row[:-1] for row in prompts], lm.initial_state(len(prompts)))
    return DecodeState(
        ops.convert_to_tensor(np.array([row[-1] for row in prompts], "int32")),
        ops.zeros((len(prompts),), "bool"),
        ops.full((len(prompts),), budget, dtype="int32"),
        state,
    )


@functools.cache
def step_of(lm):
    """One step as a program of the state."""
    return program(lambda stops, state: decode_step(lm, lm.sampler, stops, state))


def steps(lm, state, count):
    """The state after some steps, and the tokens of each row."""
    written = []
    for _ in range(count):
        state, tokens = step_of(lm)(STOPS, state)
        written.append(tiny.numpy(tokens))
    return state, np.stack(written, axis=1).tolist()


def test_a_row_goes_on_in_the_place_of_another(lm):
    """Which is what many prompts will need: the others do not notice."""
    expected = [plain.greedy(lm, row, 8) for row in PROMPTS]
    state, first = steps(lm, state_of(lm, PROMPTS[:2]), 3)
    other, _ = steps(lm, state_of(lm, PROMPTS[2:]), 1)
    state, then = steps(lm, put_row(state, 1, other), 3)
    assert first == [row[:3] for row in expected[:2]]
    assert then == [expected[0][3:6], expected[2][1:4]]
    alone, rest = steps(lm, take_row(state, 1), 2)
    assert rest == [expected[2][4:6]] and alone.ended.shape == (1,)


def test_a_row_that_has_ended_is_frozen(lm):
    state = state_of(lm, PROMPTS)._replace(budgets=ops.convert_to_tensor([1, 3, 3], "int32"))
    after, _ = steps(lm, state, 1)
    later, written = steps(lm, after, 2)
    assert written[0] == [NO_TOKEN] * 2 and NO_TOKEN not in written[1] + written[2]
    assert tiny.numpy(later.ended).tolist() == [True] * 3
    assert tiny.numpy(later.budgets).tolist() == [0] * 3
    for before, now in zip(*map(keras.tree.flatten, (after, later)), strict=True):
        if len(before.shape):
            np.testing.assert_array_equal(tiny.numpy(before)[0], tiny.numpy(now)[0])


class EvenTokens(keras_hub.samplers.Sampler):
    """The most probable token of even number: overrides `get_next_token`."""

    def get_next_token(self, probabilities):
        is_even = ops.arange(probabilities.shape[-1]) % 2 == 0
        return ops.argmax(ops.where(is_even, probabilities, -1.0), axis=-1)


class LeastProbable(keras_hub.samplers.GreedySampler):
    """The least probable token: overrides `compute_probabilities`."""

    def compute_probabilities(self, logits):
        return -super().compute_probabilities(logits)


class WithOwnLoop(keras_hub.samplers.GreedySampler):
    """Greedy search, but with a `__call__` of its own."""

    def __call__(self, **kwargs):
        return super().__call__(**kwargs)


class Noisy(keras_hub.samplers.Sampler):
    """Draws with a seed generator of its own."""

    def __init__(self, seed):
        super().__init__()
        self.noise = keras.random.SeedGenerator(seed)

    def get_next_token(self, probabilities):
        noise = keras.random.uniform(ops.shape(probabilities), seed=self.noise)
        return ops.argmax(ops.log(probabilities) - ops.log(-ops.log(noise)), axis=-1)


def choose_even(logits):
    return int(np.where(np.arange(len(logits)) % 2 == 0, logits, -np.inf).argmax())


CHOICES = [
    (EvenTokens(), choose_even),
    (LeastProbable(), lambda logits: int(logits.argmin())),
    (WithOwnLoop(), lambda logits: int(logits.argmax())),
]


@pytest.mark.parametrize("sampler, choose", CHOICES, ids=lambda x: type(x).__name__)
def test_a_sampler_of_a_users_own_chooses_every_token(lm, sampler, choose):
    """With rows of several lengths, a stop token, a state, and in a stream."""
    expected = []
    for prompt in PROMPTS:
        row = list(prompt)
        for _ in range(6):
            row.append(choose(plain.last_outputs(lm, [row])[0][0]))
        expected.append(row[len(prompt) :])
    model = type(lm)(lm.backbone)
    model.compile(sampler=sampler)
    width = max(map(len, PROMPTS))
    inputs = {
        "token_ids": np.array([row + [0] * (width - len(row)) for row in PROMPTS]),
        "padding_mask": np.array([[1] * len(row) + [0] * (width - len(row)) for row in PROMPTS]),
    }
    stop = expected[1][2]
    ends = [row.index(stop) + 1 if stop in row else 6 for row in expected]
    out, state = model.generate(
        inputs, max_new_tokens=6, stop_token_ids=[stop], strip_prompt=True, return_state=True
    )
    found = [
        ids[mask].tolist() for ids, mask in zip(out["token_ids"], out["padding_mask"], strict=True)
    ]
    assert found == [row[:end] for row, end in zip(expected, ends, strict=True)]
    assert tiny.numpy(state.last_token_ids).tolist() == [row[-1] for row in found]
    begun = model.prefill({"token_ids": np.array([PROMPTS[2][:3]])})
    rest = {"token_ids": np.array([PROMPTS[2][3:]])}
    pieces = model.stream(rest, state=begun, max_new_tokens=6, stop_token_ids=None)
    assert [int(piece["token_ids"][0, 0]) for piece in pieces] == expected[2]


def test_a_seed_generator_of_a_samplers_own_goes_on(lm):
    """One call of many tokens, several calls of few and a stream draw the same numbers."""
    count = BLOCK + 3
    prompt = {"token_ids": np.array([PROMPTS[0]])}

    def fresh():
        model = type(lm)(lm.backbone)
        model.compile(sampler=Noisy(seed=5))
        return model

    options = {"stop_token_ids": None}
    whole = fresh().generate(prompt, max_new_tokens=count, strip_prompt=True, **options)
    streamed = fresh().stream(prompt, max_new_tokens=count, **options)
    streamed = [int(piece["token_ids"][0, 0]) for piece in streamed]
    assert whole["token_ids"][0].tolist() == streamed
    assert len(set(streamed)) > 5
    again = fresh()
    first = again.generate(prompt, max_new_tokens=count, strip_prompt=True, **options)
    second = again.generate(prompt, max_new_tokens=count, strip_prompt=True, **options)
    assert first["token_ids"].tolist() != second["token_ids"].tolist()


class Delegating(keras_hub.samplers.Sampler):
    """Asks another sampler, whose seeds are not among its own variables."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def get_next_token(self, probabilities):
        return self.inner.get_next_token(ops.ones_like(probabilities))


class Unseeded(keras_hub.samplers.Sampler):
    """Draws with Keras' global seed generator."""

    def get_next_token(self, probabilities):
        return ops.argmax(keras.random.uniform(ops.shape(probabilities)), axis=-1)


class Counting(keras_hub.samplers.Sampler):
    """Counts in a variable."""

    def __init__(self):
        super().__init__()
        self.count = keras.Variable(0, dtype="int32", trainable=False)

    def get_next_token(self, probabilities):
        self.count.assign(self.count + 1)
        return ops.zeros(ops.shape(probabilities)[:1], "int32") + self.count.value


def written_by(lm, sampler, count, rows=1):
    """The new tokens of one call, a list a row."""
    model = type(lm)(lm.backbone)
    model.compile(sampler=sampler)
    prompt = {"token_ids": np.array([PROMPTS[0]] * rows)}
    new = model.generate(prompt, max_new_tokens=count, stop_token_ids=None, strip_prompt=True)
    return new["token_ids"].tolist()


@pytest.mark.skipif(
    keras.config.backend() == "jax",
    reason="KerasHub's contract on JAX: a sampler changes only what its `variables` lists",
)
def test_variables_that_a_sampler_does_not_list_go_on_too(lm):
    inner = keras_hub.samplers.RandomSampler(seed=1)
    assert len(set(written_by(lm, Delegating(inner), 9)[0])) > 4
    assert len(set(written_by(lm, Unseeded(), 9)[0])) > 4
    counting = Counting()
    assert written_by(lm, counting, BLOCK + 2) == [list(range(1, BLOCK + 3))]
    assert int(counting.count.value) == BLOCK + 2


class AsColumn(keras_hub.samplers.GreedySampler):
    """Returns tokens [B, 1] of 64 bits."""

    def get_next_token(self, probabilities):
        return ops.cast(super().get_next_token(probabilities)[:, None], "int64")


@pytest.mark.parametrize("rows", [1, 3])
def test_a_sampler_may_return_a_column(lm, rows):
    assert written_by(lm, AsColumn(), 6, rows) == [plain.greedy(lm, PROMPTS[0], 6)] * rows
