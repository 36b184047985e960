"""Runs samplers with a loop of their own (beam and contrastive search) in KerasHub's loop."""

from __future__ import annotations

from typing import Any

import keras_hub
from keras import ops

from keras_rgemma.generation.model import Model
from keras_rgemma.state.records import ModelState
from keras_rgemma.types import Tensor


def has_own_loop(sampler: object) -> bool:
    """Returns whether a sampler decides on tokens in a loop of its own."""
    base = keras_hub.samplers.Sampler
    return any(getattr(type(sampler), x) is not getattr(base, x) for x in ("__call__", "run_loop"))


def search(
    model: Model,
    keras_model: Any,
    sampler: Any,
    tokens: Tensor,
    index: Tensor,
    budgets: Tensor,
    state: ModelState,
    stop_token_ids: tuple[int, ...],
    prompt_hidden: tuple[Tensor, Tensor] | tuple[()] = (),
) -> Tensor:
    """Runs the loop of a sampler over rows whose state has consumed their prompts.

    The rows are aligned: the last prompt token of each row, which the state has not consumed,
    stands at `index - 1`, so rows of different lengths never wait for each other. A step feeds the
    token before its column exactly once. A row that has ended is frozen: its state no longer
    changes and one filler token has probability one, so that the scores of its beams stay the same,
    whatever its neighbours do.

    Args:
        model: `generation.model.Model`.
        keras_model: the `keras.Model` whose variables the loop reads.
        sampler: a `keras_hub.samplers.Sampler` with a `__call__` of its own.
        tokens: int32 [B, C]. Columns from `index` on are written.
        index: int32 scalar, the first column to write; the sampler goes on to column C - 1.
        budgets: int32 [B], how many tokens each row may get.
        state: `ModelState`, after each row's prompt without its last token.
        stop_token_ids: tuple of ints; a row ends with any of them. May be empty.
        prompt_hidden: (), or for samplers that compare hidden states a pair: float [B, C, D], the
            hidden states of the prompt in columns that end at `index - 2`, and bool [B, C], the
            columns with a hidden state.

    Returns:
        int32 [B, C]; tokens of a row after its first stop token or its budget have no meaning.
    """
    filler = stop_token_ids[0] if stop_token_ids else 0

    def next_token(
        prompt: Tensor, cache: tuple[ModelState, Tensor, Tensor], index_: Tensor
    ) -> tuple[Tensor, Tensor, tuple[ModelState, Tensor, Tensor]]:
        state, budget, ended_before = cache
        token = ops.take(prompt, index_ - 1, axis=1)
        ended = ops.logical_or(ended_before, budget <= 0)
        for stop in stop_token_ids:
            is_stop = ops.logical_and(token == stop, index_ > index)
            ended = ops.logical_or(ended, is_stop)
        # A sampler that compares hidden states needs that of the last token, too.
        frozen = ended_before if prompt_hidden else ended
        active = ops.cast(ops.logical_not(frozen), "int32")
        hidden, state = model.step(token[:, None], active[:, None], state)
        logits = model.compute_logits(hidden[:, 0])
        # Only the filler is possible for a row that has ended.
        forced = ops.where(
            ops.arange(logits.shape[-1], dtype="int32") == filler, 0.0, -float("inf")
        )
        logits = ops.where(ended[:, None], ops.cast(forced, logits.dtype), logits)
        return logits, hidden[:, 0], (state, budget - 1, ended)

    ended = ops.zeros_like(budgets, dtype="bool")
    cache = (state, budgets, ended)
    hidden_states = None
    if prompt_hidden:
        # Contrastive search needs the last prompt token, too. Columns without a token repeat its
        # hidden state, which leaves the largest similarity to the past the same.
        _, last_hidden, _ = next_token(tokens, cache, index)
        hidden, known = prompt_hidden
        hidden_states = ops.where(known[:, :, None], hidden, last_hidden[:, None])
    columns = ops.arange(tokens.shape[1], dtype="int32")[None]
    return sampler(
        next=next_token,
        prompt=tokens,
        cache=cache,
        index=index,
        mask=ops.logical_and(columns < index, ops.ones_like(tokens, dtype="bool")),
        stop_token_ids=stop_token_ids or None,
        hidden_states=hidden_states,
        model=keras_model,
    )
