"""Decodes tokens with one step for all samplers, in blocks of steps that end early."""

from __future__ import annotations

from typing import NamedTuple

import keras
from keras import ops

from keras_rgemma.generation.model import Model, Sampler
from keras_rgemma.state.records import ModelState
from keras_rgemma.types import Tensor

# The most tokens that one run of the decode program writes in each row.
BLOCK = 32
NO_TOKEN = -1


class DecodeState(NamedTuple):
    """Holds the rows of a decode loop.

    Attributes:
        last_token_ids: int32 [B], the last token of each row, which its state has not consumed.
        ended: bool [B], whether a row has a stop token or has used up its budget.
        budgets: int32 [B], how many more tokens each row may get.
        model: `ModelState` of the tokens before the last ones.
        sampler: tuple of arrays, the values of the sampler's variables, shared by all rows, on
            JAX; () elsewhere, where the sampler changes its variables itself.
    """

    last_token_ids: Tensor
    ended: Tensor
    budgets: Tensor
    model: ModelState
    sampler: tuple[Tensor, ...] = ()


def take_row(state: DecodeState, row: int | Tensor) -> DecodeState:
    """Takes one row out of a `DecodeState`.

    Args:
        state: `DecodeState` of B rows.
        row: int or int32 scalar.

    Returns:
        `DecodeState` of one row, without the sampler's values.
    """
    index = ops.reshape(ops.convert_to_tensor(row, dtype="int32"), (1,))
    rows = state._replace(sampler=())
    return keras.tree.map_structure(lambda array: ops.take(array, index, axis=0), rows)


def put_row(state: DecodeState, row: int | Tensor, one: DecodeState) -> DecodeState:
    """Puts one row into a `DecodeState`, in the place of another.

    Args:
        state: `DecodeState` of B rows.
        row: int or int32 scalar, the place.
        one: `DecodeState` of one row.

    Returns:
        `DecodeState` of B rows, with the sampler's values of `state`.
    """
    is_row_B = ops.arange(state.ended.shape[0], dtype="int32") == row

    def put(array: Tensor, new: Tensor) -> Tensor:
        mask = ops.reshape(is_row_B, (-1, *[1] * (len(array.shape) - 1)))
        return ops.where(mask, ops.cast(new, array.dtype), array)

    rows, new = state._replace(sampler=()), one._replace(sampler=())
    return keras.tree.map_structure(put, rows, new)._replace(sampler=state.sampler)


def decode_step(
    model: Model,
    sampler: Sampler,
    stop_token_ids: Tensor,
    state: DecodeState,
    all_active: bool = False,
    has_begun: bool = False,
) -> tuple[DecodeState, Tensor]:
    """Writes one token in each row that has not ended.

    The step feeds each row's last token to the model exactly once. A row that has ended is frozen:
    neither its last token nor its state changes, whatever its neighbours do.

    Args:
        model: `generation.model.Model`.
        sampler: `keras_hub.samplers.Sampler`, whose `compute_probabilities` and `get_next_token`
            choose the token.
        stop_token_ids: int32 [S], the tokens that end a row; `NO_TOKEN` fills unused places.
        state: `DecodeState`.
        all_active: bool, whether it is known that no row has ended.
        has_begun: as of `Model.step`.

    Returns:
        The new `DecodeState`, and int32 [B], the tokens (`NO_TOKEN` in rows that had ended).
    """
    active = None if all_active else ops.logical_not(state.ended)
    mask = None if all_active else active[:, None]
    hidden, model_state = model.step(state.last_token_ids[:, None], mask, state.model, has_begun)
    logits = model.compute_logits(hidden[:, 0])
    token, sampler_values = _next_token(sampler, logits, state.sampler)
    budgets = state.budgets - 1
    is_last = ops.any(token[:, None] == stop_token_ids, axis=-1)
    ended = ops.logical_or(is_last, budgets <= 0)
    last = output = token
    if not all_active:
        ended = ops.logical_or(ended, state.ended)
        budgets = ops.where(active, budgets, state.budgets)
        last = ops.where(active, token, state.last_token_ids)
        output = ops.where(active, token, NO_TOKEN)
    return DecodeState(last, ended, budgets, model_state, sampler_values), output


def _next_token(
    sampler: Sampler, logits: Tensor, values: tuple[Tensor, ...]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Samples tokens from logits with given values of the sampler's variables.

    Returns:
        int32 [B], the tokens, and the tuple of the variables' new values.
    """
    if keras.config.backend() != "jax":
        # The sampler changes its variables itself. They may be more than it lists, as those of
        # another sampler that it asks, or Keras' global seed.
        return _sample(sampler, logits), values
    variables = sampler.variables
    mapping = list(zip(variables, values, strict=True))
    with keras.StatelessScope(state_mapping=mapping) as scope:
        token = _sample(sampler, logits)
        new_values = [scope.get_current_value(variable) for variable in variables]
    return token, tuple(
        old if new is None else ops.convert_to_tensor(new)
        for new, old in zip(new_values, values, strict=True)
    )


def _sample(sampler: Sampler, logits: Tensor) -> Tensor:
    token = sampler.get_next_token(sampler.compute_probabilities(logits))
    # A sampler may return a column, or on TensorFlow a tensor whose shape is not known.
    return ops.reshape(ops.cast(token, "int32"), (logits.shape[0],))


def decode_block(
    model: Model, sampler: Sampler, stop_token_ids: Tensor, state: DecodeState, size: Tensor
) -> tuple[Tensor, DecodeState]:
    """Writes tokens until every row has ended, at most `size` in each.

    Args:
        model, sampler, stop_token_ids, state: as of `decode_step`.
        size: int32 scalar, at most `BLOCK`.

    Returns:
        int32 [BLOCK, B], the tokens, `NO_TOKEN` behind the end of a row; and the new `DecodeState`.
    """
    rows = state.ended.shape[0]
    tokens = ops.full((BLOCK, rows), NO_TOKEN, dtype="int32")

    def goes_on(count: Tensor, tokens: Tensor, state: DecodeState) -> Tensor:
        return ops.logical_and(count < size, ops.logical_not(ops.all(state.ended)))

    def write(
        count: Tensor, tokens: Tensor, state: DecodeState
    ) -> tuple[Tensor, Tensor, DecodeState]:
        # A single row has not ended here: the loop would have.
        state, output = decode_step(model, sampler, stop_token_ids, state, all_active=rows == 1)
        return count + 1, ops.slice_update(tokens, (count, 0), output[None]), state

    start = ops.convert_to_tensor(0, dtype="int32")
    _, tokens, state = ops.while_loop(goes_on, write, (start, tokens, state))
    return tokens, state
