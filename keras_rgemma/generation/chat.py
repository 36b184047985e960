"""Holds conversations in the format that instruction-tuned models are trained with."""

import copy
import dataclasses

import numpy as np
from keras import ops

from keras_rgemma.generation.generate import check_continues, start
from keras_rgemma.generation.outputs import decode_deltas
from keras_rgemma.generation.prompts import Batch
from keras_rgemma.generation.request import Request
from keras_rgemma.generation.stream import TOKENS_PER_DELTA, check_streams
from keras_rgemma.shapes import check_text
from keras_rgemma.state.rgemma_state import consumed_by, read_state, write_state
from keras_rgemma.text.conversation import check_history


class Chat:
    """Holds a conversation; each turn costs the tokens of that turn alone.

    A turn is `<start_of_turn>ROLE\\nTEXT<end_of_turn>\\n`, TEXT without white space around it. The
    text of a message is never taken for a control token.

    `RGemmaCausalLM.chat` and `load_chat` make conversations.

    Args:
        task: `RGemmaCausalLM`.
        history: sequence of dicts of `role`, "user" and "model" in turn, and `content`, str: the
            turns before.
        max_new_tokens: int, the most tokens of an answer; None for the `sequence_length` of the
            preprocessor.
        stop: str or sequence of str that also end an answer. They are no part of the history, but
            stay in the state.

    Raises:
        ValueError: the model has no preprocessor, the vocabulary lacks the control tokens, the
            history is malformed, or the sampler (contrastive search) cannot continue from a state.
    """

    def __init__(self, task, history=(), max_new_tokens=None, stop=None):
        self._task = task
        self._tokenizer = task.text_preprocessor("a conversation").tokenizer
        _, self._end_of_turn = self._tokenizer.control_token_ids()
        if max_new_tokens is None:
            max_new_tokens = task.preprocessor.sequence_length
        self._options = {"max_new_tokens": max_new_tokens, "stop": stop}
        Request.of(task, **self._options)  # raises an error for wrong options
        check_continues(task.make_generate_function())
        self._decoder = None
        self._history = check_history(history)
        ids = [self._tokenizer.start_token_id]
        for index, message in enumerate(self._history):
            ids += self._tokenizer.turn_token_ids(
                message["role"], message["content"], is_first=index == 0
            )
            ids += [self._end_of_turn]
        self._state = task.prefill(np.array(ids, "int32"))

    @property
    def history(self):
        """Returns a copy of all turns so far, a list of dicts of `role` and `content`."""
        return [dict(message) for message in self._history]

    @property
    def state(self):
        """Returns the `RGemmaState` of all tokens so far."""
        return self._state if self._decoder is None else self._decoder.rgemma_state()

    def send(self, message):
        """Adds a user's message to the conversation and returns the complete answer.

        Args:
            message: str.

        Returns:
            str.

        Raises:
            TypeError: the message is no str.
        """
        return "".join(self._answer(message))

    def stream(self, message):
        """Adds a user's message to the conversation and iterates over the answer's text.

        If the caller stops before the end, the answer ends there and the conversation continues
        from that place.

        Args:
            message: str.

        Returns:
            An iterator of str.

        Raises:
            TypeError: the message is no str.
            ValueError: the sampler does not write token by token.
        """
        check_streams(self._task.make_generate_function())
        return self._answer(message, TOKENS_PER_DELTA)

    def fork(self):
        """Returns another conversation that begins with all turns of this one."""
        other = copy.copy(self)
        other._state, other._decoder, other._history = self.state, None, self.history
        return other

    def save(self, path):
        """Writes the conversation to a file that `RGemmaCausalLM.load_chat` reads on any backend.

        Args:
            path: str or path, by convention with the suffix `.rgstate`.

        Raises:
            OSError: the file cannot be written.
        """
        write_state(path, self.state, {"history": self.history})

    @classmethod
    def load(cls, task, path, **options):
        """See `RGemmaCausalLM.load_chat`."""
        state, extra = read_state(path)
        if "history" not in extra:
            raise ValueError(
                f"{str(path)!r} holds a state without a conversation. Load it with "
                "`RGemmaState.load`."
            )
        consumed_by(task, state)
        chat = cls(task, **options)
        chat._history, chat._state = check_history(extra["history"]), state
        return chat

    def _answer(self, message, tokens_per_delta=None):
        message = check_text(message, "A message")
        self._finish()
        state, closing = self._close_last_turn()
        ids = [
            *closing,
            *self._tokenizer.turn_token_ids("user", message, is_first=not self._history),
            self._end_of_turn,
            *self._tokenizer.turn_token_ids("model", ""),
        ]
        request = Request.of(self._task, state=state, **self._options)
        batch = Batch([np.array(ids, "int32")], request.budget.of([len(ids)]), is_text=True)
        decoder = start(self._task, batch, request, keeps_state=True)
        reply = {"role": "model", "content": ""}
        self._decoder = decoder
        self._history += [{"role": "user", "content": message}, reply]
        deltas = decode_deltas(self._task, decoder, request, tokens_per_delta)
        return self._text_deltas(decoder, deltas, reply)

    def _text_deltas(self, decoder, deltas, reply):
        # Another message, sent before the answer is complete, ends this loop.
        while self._decoder is decoder:
            _, texts = next(deltas, (None, None))
            if texts is None:
                self._finish()
                return
            reply["content"] += texts[0]
            if texts[0]:
                yield texts[0]

    def _finish(self):
        """Ends the answer in progress at its last token."""
        # In this order: an interruption between the two loses nothing.
        self._state = self.state
        self._decoder = None

    def _close_last_turn(self):
        """Returns the state, and the token ids that the last turn lacks to be complete."""
        state, end = self.state, self._end_of_turn
        last = int(ops.convert_to_numpy(state.last_token_ids)[0])
        if not self._history or last == end:
            return state, []
        if last != self._tokenizer.end_token_id:
            return state, [end]
        # The state has not consumed its last token, so another token can replace it.
        ends = ops.full_like(state.last_token_ids, end)
        return dataclasses.replace(state, last_token_ids=ends), []
