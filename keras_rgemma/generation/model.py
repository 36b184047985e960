"""Defines the protocol of a model that can generate."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from keras_rgemma.state.fingerprint import Fingerprint
from keras_rgemma.state.records import ModelState
from keras_rgemma.types import Bind, Tensor


class Sampler(Protocol):
    """Protocol of `keras_hub.samplers.Sampler`, as far as decoding calls it."""

    variables: Any

    def compute_probabilities(self, logits: Tensor) -> Tensor:
        """Returns the probabilities [B, V] of logits [B, V]."""
        ...

    def get_next_token(self, probabilities: Tensor) -> Tensor:
        """Returns the tokens [B] that are chosen by probabilities [B, V]."""
        ...

    def get_config(self) -> dict[str, Any]:
        """Returns the settings."""
        ...


class Model(Protocol):
    """Protocol of the two functions of a model that decoding calls."""

    def step(
        self,
        token_ids: Tensor,
        padding_mask: Tensor | None,
        state: ModelState,
        has_begun: bool = False,
    ) -> tuple[Tensor, ModelState]:
        """Consumes more tokens of each row.

        Args:
            token_ids: int32 [B, T].
            padding_mask: int or bool [B, T], tokens first, then pads; None if there are no pads.
            state: `ModelState`.
            has_begun: bool, whether every row is known to have consumed a token before.

        Returns:
            The final hidden states [B, T, D] and the new `ModelState`.
        """
        ...

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Returns the logits [..., V] of final hidden states [..., D]."""
        ...


class GenerativeModel(Model, Protocol):
    """Protocol of a `keras.Model` that generates; the files of this folder call it a task."""

    preprocessor: Any
    backbone: Any
    sampler: Any

    def bound(
        self, bind: Bind, compiled: Callable[[Callable[..., Any]], Callable[..., Any]]
    ) -> BoundModel:
        """Returns the `BoundModel` of bound parts, see `layers.binding.unchanged`.

        Args:
            bind: function of a part.
            compiled: function that is applied to the forward pass and to that of the logits.
        """
        ...

    def distribution_scope(self) -> contextlib.AbstractContextManager[Any]:
        """Returns the context with the `keras.distribution` in which the model computes."""
        ...

    def initial_state(self, batch_size: int) -> ModelState:
        """Returns the `ModelState` of rows that have consumed no token."""
        ...

    def state_specification(self) -> ModelState:
        """Returns the `ModelState` with a `keras.KerasTensor` in place of each array."""
        ...

    def fingerprint(self) -> Fingerprint:
        """Returns the `Fingerprint` of the architecture and the weights."""
        ...

    def fingerprint_later(self) -> Callable[[], Fingerprint]:
        """Returns a function that returns the fingerprint of the weights as they are now."""
        ...

    def compile_key(self) -> tuple[Any, ...]:
        """Returns a tuple of the objects that a compiled program depends on."""
        ...

    def make_generate_function(self) -> Any:
        """Returns the `GenerationPrograms` for the sampler, the weights and the settings."""
        ...

    def text_preprocessor(self, text: object) -> Any:
        """Returns the preprocessor, or raises a ValueError that quotes the text."""
        ...


class BoundModel(NamedTuple):
    """Holds the functions of a `Model`, bound to raw tensors.

    Attributes:
        step, compute_logits: functions as of `Model`.
        decoding: the `BoundModel` for one new token a row, whose `step` may write into the ring
            buffers of its argument `state`; None where arrays cannot change.
        context: function that returns the context manager in which a token is written.
    """

    step: Callable[..., Any]
    compute_logits: Callable[[Tensor], Tensor]
    decoding: Any = None
    context: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
