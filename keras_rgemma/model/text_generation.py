"""Defines the methods of a causal language model that write and read text."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from keras_rgemma.config import check_count
from keras_rgemma.generation import generate, prefill, stream
from keras_rgemma.generation.chat import Chat
from keras_rgemma.generation.request import Request
from keras_rgemma.generation.stream import Stream
from keras_rgemma.state.rgemma_state import RGemmaState
from keras_rgemma.types import StrPath


class TextGeneration:
    """Mixin for `RGemmaCausalLM` that generates, streams, prefills and chats."""

    def generate(
        self,
        inputs: Any,
        max_length: int | None = None,
        stop_token_ids: str | Sequence[int] | None = "auto",
        strip_prompt: bool = False,
        *,
        max_new_tokens: int | None = None,
        stop: str | Sequence[str] | None = None,
        num_return_sequences: int = 1,
        state: RGemmaState | None = None,
        return_state: bool = False,
        batch_size: int | None = None,
    ) -> Any:
        """Continues prompts with the sampler of `compile`.

        With a deterministic sampler a row's answer depends on that row alone: not on the rows
        beside it, on padding, or on `max_length`.

        Args:
            inputs: a str; several in a list, tuple, array, generator or other iterable, a column
                of pandas, Arrow or `datasets`, or rows or columns `{"text": ...}`; messages, a list
                of dicts of `role` and `content` as of `chat` that ends with the user's, or a list,
                rows or a column `messages` of such lists; a dict of `token_ids` int [B, T] and, if
                rows are padded, `padding_mask` [B, T]; or a `tf.data.Dataset` of batches of any of
                these.
            max_length: int, the most tokens of a row, its prompt included; tokens in `state` do not
                count. With neither limit: the width of `token_ids` for a dict, else the
                preprocessor's `sequence_length` for the total, or for the new tokens of a longer
                prompt and of an answer to messages.
            stop_token_ids: "auto" for the tokenizer's `<eos>` and `<end_of_turn>` (and
                `<start_of_turn>` in an answer to messages), a sequence of ids, or None to always
                use up the limit.
            strip_prompt: bool, whether to return the new text alone, as for messages always.
            max_new_tokens: int, the most new tokens of a row, instead of `max_length`.
            stop: str or sequence of str that also end a row; the text ends before them.
            num_return_sequences: int, the number of continuations of each prompt, one after the
                other in the output. The prompt is read once.
            state: `RGemmaState` that the prompts continue from, without a start token; they may be
                empty. Messages begin a new turn: one that the text of the state leaves open is
                ended first. The state does not change.
            return_state: bool, whether to return an `RGemmaState` beside the text.
            batch_size: int, how many prompts of any number are continued at a time: when a text
                ends, the next prompt takes its row. Results come in the order of the prompts, and a
                bar shows how many are done. Then `state` has one row, from which every prompt
                continues, and the batches of a dataset are joined. None continues all at once.

        Returns:
            A str for a str, a list of str for several; for messages the answer alone, which is what
            `chat` gives, a str for one list of them; a dict of arrays `token_ids` and
            `padding_mask` (rows begin at column 0) for a dict. With `return_state` a pair of that
            and the `RGemmaState` after it, a stop string included.

        Raises:
            ValueError: there are no prompts, a prompt is empty without a start token, a message is
                malformed or out of turn, ids are outside of the vocabulary, the mask has another
                shape, a limit is negative, shorter than a prompt or too large, both limits are
                passed, the state belongs to another model or has another number of rows, or
                `batch_size` comes with `return_state`.
            TypeError: the prompts are no text; None and NaN are named with their index.

        Example:
        ```python
        lm.generate("In the beginning", max_length=64)
        lm.generate({"token_ids": np.array([[2, 300, 301]])}, max_new_tokens=8)
        text, state = lm.generate("In the beginning", max_new_tokens=8, return_state=True)
        lm.generate(" And", state=state, stop=".")
        lm.generate([{"role": "user", "content": "What is a river?"}], max_new_tokens=8)
        lm.generate([f"{i} and" for i in range(9)], batch_size=4, max_new_tokens=8)
        ```
        """
        if batch_size is not None:
            batch_size = check_count("batch_size", batch_size)
        request = Request.of(
            self,
            max_length=max_length,
            max_new_tokens=max_new_tokens,
            stop_token_ids=stop_token_ids,
            stop=stop,
            state=state,
            copies=check_count("num_return_sequences", num_return_sequences),
            batch_size=batch_size,
        )
        return generate.generate(self, inputs, request, strip_prompt, return_state)

    def stream(
        self,
        inputs: Any,
        max_length: int | None = None,
        stop_token_ids: str | Sequence[int] | None = "auto",
        *,
        max_new_tokens: int | None = None,
        stop: str | Sequence[str] | None = None,
        state: RGemmaState | None = None,
    ) -> Stream:
        """Continues prompts and iterates over deltas, the new text of each step.

        The deltas joined are the result of `generate(..., strip_prompt=True)`. No delta ends with
        half a character, or with a possible beginning of a stop string.

        Args:
            inputs: as of `generate`, a single batch.
            max_length, stop_token_ids, max_new_tokens, stop, state: as of `generate`.

        Returns:
            An iterator of str for a str or one list of messages, of lists of B str for several
            prompts, of dicts of arrays for a dict. Its attribute `state` is the `RGemmaState` after
            the deltas so far; `close()` ends the text. Nothing is computed between two deltas.

        Raises:
            ValueError: the sampler does not write token by token (beam, contrastive), and as
                `generate`.

        Example:
        ```python
        for delta in lm.stream("In the beginning", max_new_tokens=64):
            print(delta, end="", flush=True)
        ```
        """
        request = Request.of(
            self,
            max_length=max_length,
            max_new_tokens=max_new_tokens,
            stop_token_ids=stop_token_ids,
            stop=stop,
            state=state,
        )
        return stream.stream(self, inputs, request)

    def prefill(
        self, inputs: Any, state: RGemmaState | None = None, chunk_size: int = 2048
    ) -> RGemmaState:
        """Reads text of any length into a state of fixed size.

        Args:
            inputs: texts, a batch, in any form of `generate` but an iterator; messages as of
                `generate`, which may end with the model's answer, too; token ids as a list, an
                array [T] or [B, T] or a dict as of `generate`; or an iterator (such as a generator
                or an open file) of the pieces of one text, each a str or the ids of a row. Each
                str is tokenized independently, so a word should not be cut between two pieces. The
                start token comes before text, once. After messages that end with the user's the
                state waits for the answer: `generate("", state=...)` writes it.
            state: `RGemmaState` to continue from, which does not change; None for the beginning.
            chunk_size: int, the tokens of a row in one chunk, which is read in one step. The memory
                for reading grows with the chunk, and not with the text.

        Returns:
            `RGemmaState` of all the text.

        Raises:
            ValueError: there is no token, ids are outside of the vocabulary, the mask has another
                shape, or the state belongs to another model or has another number of rows.

        Example:
        ```python
        state = lm.prefill("In the beginning God created")
        state = lm.prefill([330, 331], state=state)
        lm.generate("", state=state, max_new_tokens=8)
        ```
        """
        return prefill.prefill(self, inputs, state, check_count("chunk_size", chunk_size))

    def chat(
        self,
        history: Iterable[Mapping[str, Any]] = (),
        max_new_tokens: int | None = None,
        stop: str | Sequence[str] | None = None,
    ) -> Chat:
        """Begins a conversation in the format that instruction-tuned models are trained with.

        Args:
            history: list of the messages before, dicts of `role` ("user" and "model" or "assistant"
                in turn, after a first "system") and `content` (str, or a list of
                `{"type": "text", "text": str}`). A system message goes in front of the first user's
                content with an empty line between. Control tokens in contents are plain text. The
                history ends with the model's answer, or is a system message alone.
            max_new_tokens: int, the most tokens of an answer; None for the `sequence_length` of the
                preprocessor.
            stop: str or sequence of str that also end an answer. They are no part of the history,
                but stay in the state.

        Returns:
            `keras_rgemma.generation.chat.Chat`.

        Raises:
            ValueError: there is no preprocessor, the vocabulary lacks `<start_of_turn>` or
                `<end_of_turn>`, or the history is malformed.

        Example:
        ```python
        chat = lm.chat()
        chat.send("What is a lighthouse?")
        for delta in chat.stream("And a river?"):
            print(delta, end="", flush=True)
        chat = lm.chat([{"role": "system", "content": "Answer in one line."}])
        ```
        """
        return Chat(self, history, max_new_tokens=max_new_tokens, stop=stop)

    def load_chat(
        self,
        path: StrPath,
        max_new_tokens: int | None = None,
        stop: str | Sequence[str] | None = None,
    ) -> Chat:
        """Loads a conversation that `Chat.save` wrote on any backend.

        Args:
            path: str or path.
            max_new_tokens, stop: as of `chat`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file holds no conversation, is damaged, or belongs to another model.

        Example:
        ```python
        chat = lm.chat()
        chat.send("What is a lighthouse?")
        chat.save("chat.rgstate")
        lm.load_chat("chat.rgstate").send("And a river?")
        ```
        """
        return Chat.load(self, path, max_new_tokens=max_new_tokens, stop=stop)
