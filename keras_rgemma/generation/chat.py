"""Holds conversations in the format that instruction-tuned models are trained with."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self, TypeAlias

import numpy as np

from keras_rgemma.generation.decoder import RowDecoder
from keras_rgemma.generation.generate import check_continues, start
from keras_rgemma.generation.outputs import decode_deltas
from keras_rgemma.generation.prompts import to_batch
from keras_rgemma.generation.request import Request
from keras_rgemma.generation.stream import TOKENS_PER_DELTA, check_streams
from keras_rgemma.state.continuing import consumed_by
from keras_rgemma.state.rgemma_state import RGemmaState, read_state, write_state
from keras_rgemma.text.conversation import (
    check_ends,
    is_conversation,
    read_history,
    read_messages,
    turns_token_ids,
    waits_for_user,
)
from keras_rgemma.text.forms import is_row, is_text, read_text
from keras_rgemma.types import StrPath

# What a user says: a text, a message, or several.
Message: TypeAlias = str | Mapping[str, Any] | Sequence[Mapping[str, Any]]


class Chat:
    """Holds a conversation; each turn costs the tokens of that turn alone.

    A turn is `<start_of_turn>ROLE\\nTEXT<end_of_turn>\\n`, TEXT without white space around it. The
    text of a message is never taken for a control token.

    `RGemmaCausalLM.chat` and `load_chat` make conversations.

    Args:
        task: `RGemmaCausalLM`.
        history: list of the messages before, as of `keras_rgemma.text.conversation.read_messages`.
            It ends with the model's answer, or is a system message alone.
        **options: `max_new_tokens` and `stop`, see `RGemmaCausalLM.chat`.

    Raises:
        ValueError: the model has no preprocessor, the vocabulary lacks the control tokens, the
            history is malformed, or the sampler (contrastive search) cannot continue from a state.

    Example:
    ```python
    chat = lm.chat(max_new_tokens=32)
    chat.send("What is a lighthouse?")
    chat.history[-1]["content"]  # the answer
    chat.state.num_tokens
    ```
    """

    def __init__(
        self, task: Any, history: Iterable[Mapping[str, Any]] = (), **options: Any
    ) -> None:
        self._task = task
        tokenizer = task.text_preprocessor("a conversation").tokenizer
        tokenizer.control_token_ids()  # raises an error for a vocabulary without them
        self._request = Request.of(task, **options)
        check_continues(task.make_generate_function())
        self._decoder = None
        self._history = read_history(history)
        turns = [] if waits_for_user(self._history) else self._history
        ids = [tokenizer.start_token_id, *turns_token_ids(tokenizer, turns)]
        self._state = task.prefill(np.array(ids, "int32"))

    @property
    def history(self) -> list[dict[str, str]]:
        """Returns a copy of all turns so far, a list of dicts of `role` and `content`.

        A role is "user" or "model". A system message is a part of the first user's content; before
        there is one, it is the only turn.
        """
        return [dict(message) for message in self._history]

    @property
    def state(self) -> RGemmaState:
        """Returns the `RGemmaState` of all tokens so far."""
        return self._state if self._decoder is None else self._decoder.rgemma_state()

    def send(self, message: Message) -> str:
        """Adds a user's message to the conversation and returns the complete answer.

        Args:
            message: str; a dict of `role` and `content`; or a list of such messages, which goes on
                with the conversation and ends with the user's.

        Returns:
            str.

        Raises:
            TypeError: the message is none of these.
            ValueError: a message is malformed or out of turn, or the list begins with the turns
                that the conversation has already.

        Example:
        ```python
        chat = lm.chat(max_new_tokens=32)
        chat.send("What is a lighthouse?")
        chat.send([{"role": "user", "content": "And a river?"}])
        ```
        """
        return "".join(self._answer(message))

    def stream(self, message: Message) -> Iterator[str]:
        """Adds a user's message to the conversation and iterates over the answer's text.

        If the caller stops before the end, the answer ends there and the conversation continues
        from that place.

        Args:
            message: as of `send`.

        Returns:
            An iterator of str.

        Raises:
            ValueError: the sampler does not write token by token, and as `send`.
            TypeError: as `send`.

        Example:
        ```python
        chat = lm.chat(max_new_tokens=32)
        for delta in chat.stream("What is a lighthouse?"):
            print(delta, end="", flush=True)
        ```
        """
        check_streams(self._task.make_generate_function())
        return self._answer(message, TOKENS_PER_DELTA)

    def fork(self) -> Chat:
        """Returns another conversation that begins with all turns of this one.

        Example:
        ```python
        chat = lm.chat(max_new_tokens=32)
        chat.send("What is a lighthouse?")
        other = chat.fork()
        other.send("And a river?")  # `chat` does not know of it
        ```
        """
        other = copy.copy(self)
        other._state, other._decoder, other._history = self.state, None, self.history
        return other

    def save(self, path: StrPath) -> None:
        """Writes the conversation to a file that `RGemmaCausalLM.load_chat` reads on any backend.

        Args:
            path: str or path, by convention with the suffix `.rgstate`.

        Raises:
            OSError: the file cannot be written.

        Example:
        ```python
        chat = lm.chat(max_new_tokens=32)
        chat.send("What is a lighthouse?")
        chat.save("chat.rgstate")
        ```
        """
        write_state(path, self.state, {"history": self.history})

    @classmethod
    def load(cls, task: Any, path: StrPath, **options: Any) -> Self:
        """See `RGemmaCausalLM.load_chat`."""
        state, extra = read_state(path)
        if "history" not in extra:
            raise ValueError(
                f"{str(path)!r} holds a state without a conversation. Load it with "
                "`RGemmaState.load`."
            )
        consumed_by(task, state)
        chat = cls(task, **options)
        chat._history, chat._state = read_history(extra["history"]), state
        return chat

    def _answer(self, message: Message, tokens_per_delta: int | None = None) -> Iterator[str]:
        turns = self._read(message)
        self._finish()
        request = dataclasses.replace(self._request, state=self._state)
        batch = to_batch(self._task, [turns], request)
        decoder = start(self._task, batch, keeps_state=True)
        reply = {"role": "model", "content": ""}
        before = [] if waits_for_user(self._history) else self._history
        self._decoder, self._history = decoder, [*before, *turns, reply]
        deltas = decode_deltas(self._task, decoder, batch.request, tokens_per_delta)
        return self._text_deltas(decoder, deltas, reply)

    def _read(self, message: Any) -> list[dict[str, str]]:
        """Reads a message, or several, as turns that go on with the conversation."""
        if is_text(message):
            message = {"role": "user", "content": read_text(message, "A message")}
        messages = [message] if is_row(message) else message
        if not is_conversation(messages):
            raise TypeError(
                "A message must be a str, or a list of dicts of 'role' and 'content'. Received: "
                f"{message!r} of type {type(message).__name__}."
            )
        turns = read_messages(messages, "A list of messages")
        if self._history and turns[: len(self._history)] == self._history:
            raise ValueError(
                "The messages begin with the turns that this conversation has already. Send those "
                f"that follow, messages[{len(self._history)}:], or answer a list of all messages "
                "with `RGemmaCausalLM.generate`."
            )
        turns = read_messages(messages, "A list of messages", self._history)
        check_ends(turns, "user", "A list of messages to send")
        return turns

    def _text_deltas(
        self,
        decoder: RowDecoder,
        deltas: Iterator[tuple[list[np.ndarray], list[str]]],
        reply: dict[str, str],
    ) -> Iterator[str]:
        # Another message, sent before the answer is complete, ends this loop.
        while self._decoder is decoder:
            _, texts = next(deltas, (None, None))
            if texts is None:
                self._finish()
                return
            reply["content"] += texts[0]
            if texts[0]:
                yield texts[0]

    def _finish(self) -> None:
        """Ends the answer in progress at its last token."""
        # In this order: an interruption between the two loses nothing.
        self._state = self.state
        self._decoder = None
