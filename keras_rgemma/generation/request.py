"""Checks the arguments of `generate` and `stream`: limits, stop tokens and strings, a state."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_rgemma.shapes import as_array, check_token_ids
from keras_rgemma.state.rgemma_state import RGemmaState, check_is_state

# Samplers with a loop of their own fill a buffer of this size.
MOST_NEW_TOKENS = 2**22


@dataclasses.dataclass(frozen=True)
class TokenBudget:
    """Computes how many new tokens rows may get.

    Args:
        max_length: int or None, tokens of a row in all.
        max_new_tokens: int or None.
        sequence_length: int or None, the default for `max_length`.

    Raises:
        ValueError: both limits are passed, or one is negative or no whole number.
    """

    max_length: int | None = None
    max_new_tokens: int | None = None
    sequence_length: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_length", "max_new_tokens"):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
                raise ValueError(
                    f"`{name}` must be a whole number of tokens, at least 0. Received: {value!r}."
                )
        if self.max_length is not None and self.max_new_tokens is not None:
            raise ValueError(
                "Pass `max_length` (tokens in all) or `max_new_tokens`, not both. Received: "
                f"max_length={self.max_length}, max_new_tokens={self.max_new_tokens}."
            )

    def of_answers(self) -> TokenBudget:
        """Returns the budget of answers, whose default counts the new tokens alone."""
        if self.max_length is not None or self.max_new_tokens is not None:
            return self
        return dataclasses.replace(self, max_new_tokens=self.sequence_length)

    def of(self, lengths: Sequence[int], default_length: int | None = None) -> list[int]:
        """Returns the budgets of new tokens for prompts of these lengths, a list of ints.

        Args:
            lengths: list of ints.
            default_length: int or None, total tokens when no limit was given.

        Raises:
            ValueError: a prompt is longer than `max_length`, or the limit is out of reach.
        """
        budgets = self._budgets(lengths, default_length)
        if max(budgets) > MOST_NEW_TOKENS:
            raise ValueError(
                f"One call writes at most {MOST_NEW_TOKENS} new tokens a row. Received a limit of "
                f"{max(budgets)}. Lower it, and call again with the text so far for more."
            )
        return budgets

    def _budgets(self, lengths: Sequence[int], default_length: int | None) -> list[int]:
        if self.max_new_tokens is not None:
            return [int(self.max_new_tokens)] * len(lengths)
        total = default_length if self.max_length is None else self.max_length
        if total is None:
            return [self._default(row, length) for row, length in enumerate(lengths)]
        for row, length in enumerate(lengths):
            if length > total:
                raise ValueError(
                    f"`max_length`={total} is shorter than prompt {row}, which has {length} "
                    f"tokens. Pass at least {length}, or bound the new tokens alone with "
                    "`max_new_tokens`. Prompts are never cut."
                )
        return [int(total) - length for length in lengths]

    def _default(self, row: int, length: int) -> int:
        """Returns the budget of a prompt when no limit was given.

        `sequence_length` bounds the total, as in KerasHub, which cuts longer prompts. Here prompts
        are never cut: for a longer one it bounds the new tokens. A prompt that fills it exactly is
        complete, and KerasHub's users get no new token for it. That looks like a model with
        nothing to say, hence the warning.
        """
        if length == self.sequence_length:
            warnings.warn(
                f"Prompt {row} has {length} tokens, which is all that `sequence_length` of the "
                "preprocessor allows for a text, so it gets no new token. Pass `max_new_tokens`.",
                stacklevel=2,
            )
        return self.sequence_length - (length if length <= self.sequence_length else 0)


@dataclasses.dataclass(frozen=True)
class Request:
    """Holds the checked options for the continuation of prompts.

    Attributes:
        budget: `TokenBudget`.
        stop_token_ids: tuple of ints.
        unwritten: set of ints, the stop tokens that are no part of the text which they end.
        is_auto: bool, whether the caller left the choice of stop tokens to the model.
        stop: tuple of str.
        state: `RGemmaState` that the prompts continue from, or None.
        copies: int, how many continuations each prompt gets.
        batch_size: int, how many of any number of prompts are continued at a time; None for all.
    """

    budget: TokenBudget
    stop_token_ids: tuple[int, ...]
    unwritten: set[int]
    is_auto: bool
    stop: tuple[str, ...]
    state: RGemmaState | None
    copies: int
    batch_size: int | None = None

    @property
    def shares_state(self) -> bool:
        """Returns whether the state has one row, from which all prompts continue."""
        return self.state is not None and self.batch_size is not None

    @classmethod
    def of(
        cls,
        task: Any,
        *,
        max_length: int | None = None,
        max_new_tokens: int | None = None,
        stop_token_ids: str | Sequence[int] | None = "auto",
        stop: str | Sequence[str] | None = None,
        state: RGemmaState | None = None,
        copies: int = 1,
        batch_size: int | None = None,
    ) -> Request:
        """Checks arguments of `generate` and returns their `Request`.

        Args:
            task: a `keras.Model` with `preprocessor` and `backbone`.
        """
        if batch_size and state is not None:
            check_one_row(state)
        sequence_length = getattr(task.preprocessor, "sequence_length", None)
        end_of_turn = getattr(getattr(task.preprocessor, "tokenizer", None), "end_token2_id", None)
        ids = read_stop_token_ids(stop_token_ids, task.preprocessor, task.backbone.vocabulary_size)
        return cls(
            TokenBudget(max_length, max_new_tokens, sequence_length),
            ids,
            {end_of_turn}.intersection(ids),
            isinstance(stop_token_ids, str),
            read_stop(stop, has_text=task.preprocessor is not None),
            state,
            copies,
            batch_size,
        )

    def of_answers(self, tokenizer: Any) -> Request:
        """Returns the request for answers in conversations.

        `<start_of_turn>` ends an answer as `<end_of_turn>` does: a model that begins another turn
        without the end of its own has nothing more to say.
        """
        turn_ids = tokenizer.control_token_ids()
        ids = self.stop_token_ids
        if self.is_auto:
            ids = tuple(dict.fromkeys([*ids, *turn_ids]))
        unwritten = set(turn_ids).intersection(ids)
        budget = self.budget.of_answers()
        return dataclasses.replace(self, budget=budget, stop_token_ids=ids, unwritten=unwritten)


def check_one_row(state: RGemmaState) -> None:
    """Raises ValueError if a state has not one row, TypeError if it is no state."""
    check_is_state(state)
    if state.batch_size != 1:
        raise ValueError(
            "With `batch_size` a state of one row is the beginning of every prompt. Received a "
            f"state of {state.batch_size} rows: pass one of them, such as `state[:1]`."
        )


def read_stop_token_ids(
    stop_token_ids: str | Sequence[int] | None, preprocessor: Any, vocabulary_size: int
) -> tuple[int, ...]:
    """Returns the ids of the tokens that end a text, a tuple of ints.

    Args:
        stop_token_ids: "auto", None, or a sequence of ids.
        preprocessor: the preprocessor with the tokenizer for "auto", or None.
        vocabulary_size: int.

    Raises:
        ValueError: `stop_token_ids` is none of these, an id is outside of the vocabulary, or "auto"
            has no preprocessor.
    """
    if stop_token_ids is None:
        return ()
    if isinstance(stop_token_ids, str) and stop_token_ids == "auto":
        if preprocessor is None:
            raise ValueError(
                "`stop_token_ids='auto'` needs a preprocessor, whose tokenizer knows what ends "
                "a text. Pass a tuple of token ids, or None to use up the limit."
            )
        tokenizer = preprocessor.tokenizer
        ends = (tokenizer.end_token_id, getattr(tokenizer, "end_token2_id", None))
        return tuple(id for id in ends if id is not None)
    ids = as_array(stop_token_ids, "stop_token_ids")
    if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
        raise ValueError(
            "`stop_token_ids` must be 'auto', None or a sequence of token ids, such as (1, 107). "
            f"Received: {stop_token_ids!r}."
        )
    check_token_ids(ids[None], vocabulary_size, "stop_token_ids")
    return tuple(int(id) for id in ids)


def read_stop(stop: str | Sequence[str] | None, has_text: bool) -> tuple[str, ...]:
    """Returns the strings that end a text, a tuple.

    Args:
        stop: str, sequence of str, or None.
        has_text: bool, whether the model has a preprocessor, which decodes tokens.

    Raises:
        ValueError: a string is empty, an element is no string, or there is no preprocessor.
    """
    strings = [stop] if isinstance(stop, str) else [] if stop is None else list(stop)
    if not all(isinstance(string, str) and string for string in strings):
        raise ValueError(
            "`stop` must be a str or a sequence of str, none of them empty, such as ['\\n\\n']. "
            f"Received: {stop!r}."
        )
    if strings and not has_text:
        raise ValueError(
            "`stop` needs a preprocessor, which tells the text of tokens. Received: "
            f"{stop!r}. Attach one, or pass `stop_token_ids`."
        )
    return tuple(strings)
