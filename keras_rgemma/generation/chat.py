"""A conversation in the format that instruction-tuned models are trained with."""

import copy
import dataclasses

import numpy as np
from keras import ops

from keras_rgemma.generation.generate import check_continues, start
from keras_rgemma.generation.outputs import decode_deltas
from keras_rgemma.generation.prompts import Batch
from keras_rgemma.generation.request import Request
from keras_rgemma.generation.stream import AT_A_TIME, check_streams
from keras_rgemma.shapes import check_text
from keras_rgemma.state.rgemma_state import consumed_by, read_state, write_state
from keras_rgemma.text.conversation import check_history


class Chat:
    """A conversation, of which each turn costs its own tokens alone.

    A turn is `<start_of_turn>ROLE\\nTEXT<end_of_turn>\\n`, TEXT without white space around it. What
    stands in a message is never taken for a control token.

    `RGemmaCausalLM.chat` and `load_chat` make them.

    Args:
        task: `RGemmaCausalLM`.
        history: sequence of dicts of `role`, "user" and "model" in turn, and `content`, str: what
            was said before.
        max_new_tokens: int, the most tokens of an answer; None for the `sequence_length` of the
            preprocessor.
        stop: str or sequence of str that end an answer, too. They are no part of the history, but
            stay in the state.

    Raises:
        ValueError: a model without a preprocessor, a vocabulary without the control tokens, a
            history that is malformed, or contrastive search, which cannot go on from a state.
    """

    def __init__(self, task, history=(), max_new_tokens=None, stop=None):
        self._task = task
        self._tokenizer = task.text_preprocessor("a conversation").tokenizer
        _, self._end_of_turn = self._tokenizer.control_token_ids()
        if max_new_tokens is None:
            max_new_tokens = task.preprocessor.sequence_length
        self._options = {"max_new_tokens": max_new_tokens, "stop": stop}
        Request.of(task, **self._options)  # which complains of what is wrong with them
        check_continues(task.make_generate_function())
        self._answering = None
        self._history = check_history(history)
        ids = [self._tokenizer.start_token_id]
        for place, message in enumerate(self._history):
            ids += self._tokenizer.turn_token_ids(
                message["role"], message["content"], is_first=place == 0
            )
            ids += [self._end_of_turn]
        self._state = task.prefill(np.array(ids, "int32"))

    @property
    def history(self):
        """A list of dicts of `role` and `content`, all that was said so far; a copy."""
        return [dict(message) for message in self._history]

    @property
    def state(self):
        """`RGemmaState` of all tokens so far."""
        return self._state if self._answering is None else self._answering.session()

    def send(self, message):
        """Says something, and returns the answer.

        Args:
            message: str.

        Returns:
            str.

        Raises:
            TypeError: the message is no str.
        """
        return "".join(self._answer(message))

    def stream(self, message):
        """Says something, and gives the answer as it is made.

        When it is not read to its end, the conversation goes on from where it was left.

        Args:
            message: str.

        Returns:
            An iterator of str.

        Raises:
            TypeError: the message is no str.
            ValueError: a sampler that does not write token by token.
        """
        check_streams(self._task.make_generate_function())
        return self._answer(message, AT_A_TIME)

    def fork(self):
        """Another conversation that begins with all that was said in this one."""
        other = copy.copy(self)
        other._state, other._answering, other._history = self.state, None, self.history
        return other

    def save(self, path):
        """Writes a file that `RGemmaCausalLM.load_chat` reads on any backend.

        Args:
            path: str or path, by convention with the suffix `.rgstate`.

        Raises:
            OSError: it cannot be written.
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

    def _answer(self, message, at_a_time=None):
        message = check_text(message, "A message")
        self._finish()
        state, closing = self._closed()
        ids = [
            *closing,
            *self._tokenizer.turn_token_ids("user", message, is_first=not self._history),
            self._end_of_turn,
            *self._tokenizer.turn_token_ids("model", ""),
        ]
        request = Request.of(self._task, state=state, **self._options)
        batch = Batch([np.array(ids, "int32")], request.budget.of([len(ids)]), is_text=True)
        tokens = start(self._task, batch, request, keeps_state=True)
        reply = {"role": "model", "content": ""}
        self._answering = tokens
        self._history += [{"role": "user", "content": message}, reply]
        return self._pieces(tokens, decode_deltas(self._task, tokens, request, at_a_time), reply)

    def _pieces(self, tokens, pieces, reply):
        # Until somebody goes on with the conversation before the answer is complete.
        while self._answering is tokens:
            _, said = next(pieces, (None, None))
            if said is None:
                self._finish()
                return
            reply["content"] += said[0]
            if said[0]:
                yield said[0]

    def _finish(self):
        """Leaves the answer that is being made as it is."""
        # In this order: an interruption between the two loses nothing.
        self._state = self.state
        self._answering = None

    def _closed(self):
        """The state, and the ids that the last turn lacks to its end."""
        state, end = self.state, self._end_of_turn
        last = int(ops.convert_to_numpy(state.last_token_ids)[0])
        if not self._history or last == end:
            return state, []
        if last != self._tokenizer.end_token_id:
            return state, [end]
        # It is not consumed yet, so another token can take its place.
        ends = ops.full_like(state.last_token_ids, end)
        return dataclasses.replace(state, last_token_ids=ends), []
