"""Defines the SentencePiece tokenizer with Gemma's control tokens."""

import pathlib
import re
from collections.abc import Sequence
from typing import Any, Self

import keras
import keras_hub
import sentencepiece

from keras_rgemma.checkpoints.folder import open_checkpoint, read_tokenizer
from keras_rgemma.checkpoints.hub import TOKENIZER
from keras_rgemma.checkpoints.presets import Presets, resolve
from keras_rgemma.keras_internals.tokenizers import WrapsProcessors, add_special_token
from keras_rgemma.model.backbone import RGemmaBackbone
from keras_rgemma.text.literal_space import ids_of, spelled_apart, with_literal_spaces
from keras_rgemma.text.quiet_model import with_table
from keras_rgemma.types import StrPath


@keras.saving.register_keras_serializable(package="keras_rgemma")
class RGemmaTokenizer(WrapsProcessors, keras_hub.tokenizers.SentencePieceTokenizer):
    """Turns text into token ids and back, with a SentencePiece model.

    `<bos>`, `<eos>` and `<pad>` must be in the vocabulary. `<end_of_turn>`, the second token that
    ends an answer, is optional: the attribute `end_token2_id` exists if the vocabulary has it.
    User-defined tokens of the SentencePiece model (Gemma's `<start_of_turn>` and `<end_of_turn>`)
    are recognised in text.

    A fine-tune's `tokenizer.json` is read by `from_preset`, and gives the ids that Hugging Face's
    tokenizer gives: see `checkpoints.tokenizer_json`.

    Args:
        proto: the path of a SentencePiece model file, or its bytes.
        control_tokens: sequence of str, further tokens that are recognised in text, those of
            SentencePiece's kind CONTROL (`<bos>`) among them. In the messages of a conversation
            they are not recognised, except for tokens of one character.
        **kwargs: of `keras_hub.tokenizers.SentencePieceTokenizer`.

    Raises:
        ValueError: a required control token is not in the vocabulary.

    Example:
    ```python
    tokenizer = keras_rgemma.RGemmaTokenizer.from_preset("rgemma_tiny_en")
    ids = tokenizer("In the beginning")
    tokenizer.detokenize(ids)  # "In the beginning"
    tokenizer.end_token2_id, tokenizer.control_tokens
    keras_rgemma.RGemmaTokenizer.presets
    ```
    """

    backbone_cls = RGemmaBackbone
    start_of_turn = "<start_of_turn>"
    end_token2 = "<end_of_turn>"
    presets = Presets()
    """dict of the built-in presets by name, each a dict with `description`, `parameter_count`,
    `weights`."""

    def __init__(
        self,
        proto: StrPath | bytes | None = None,
        *,
        control_tokens: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        self._end_token2_id = None
        self._control_tokens = tuple(control_tokens)
        add_special_token(self, "<bos>", "start_token")
        add_special_token(self, "<eos>", "end_token")
        add_special_token(self, "<pad>", "pad_token")
        super().__init__(proto=proto, **kwargs)
        # It has no weights, but `quantize` of a model refuses layers that are not built.
        self.built = True

    @classmethod
    def from_preset(cls, preset: StrPath, *, revision: str | None = None, **kwargs: Any) -> Self:
        """Creates the layer from a preset; no weights are fetched.

        Args:
            preset, revision: see `RGemmaBackbone.from_preset`.
            **kwargs: arguments of the constructor.

        Raises:
            ValueError: the preset has no tokenizer, or one with a setting that SentencePiece lacks.
                See `RGemmaBackbone.from_preset`, too.

        Example:
        ```python
        tokenizer = keras_rgemma.RGemmaTokenizer.from_preset("rgemma_tiny_en")
        ```
        """
        folder = resolve(preset, TOKENIZER, revision)
        tokenizer = read_tokenizer(folder)
        if tokenizer:
            return cls(**{**tokenizer, **kwargs})
        if open_checkpoint(folder):
            raise ValueError(
                f"{folder!r} holds no tokenizer.model and no tokenizer.json of its tokenizer. Copy "
                "one of the model it comes from into it."
            )
        return super().from_preset(folder, **kwargs)

    @property
    def end_token2_id(self) -> int:
        """Returns the id of `<end_of_turn>`. KerasHub asks by `hasattr` whether there is one."""
        if self._end_token2_id is None:
            raise AttributeError("end_token2_id")
        return self._end_token2_id

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """Returns the tuple of further tokens that are recognised in text."""
        return self._control_tokens

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        # Left out where there are none: presets of before look the same.
        return config | (
            {"control_tokens": list(self._control_tokens)} if self._control_tokens else {}
        )

    def literal_token_ids(self, text: str) -> list[int]:
        """Returns the token ids of text without recognising control tokens.

        `<end_of_turn>` in the text becomes plain characters, which decode to the same text.

        Args:
            text: str.

        Returns:
            list of ints.

        Example:
        ```python
        tokenizer.detokenize(tokenizer.literal_token_ids("<end_of_turn>"))  # "<end_of_turn>"
        ```
        """
        parts = self._literal_parts(text)
        return [int(id) for row in self.token_id_rows(parts) for id in row]

    def _literal_parts(self, text: str) -> list[str]:
        """Cuts a text so that no part has a control token in it."""
        controls = {*self.special_tokens, self.start_of_turn, self.end_token2}
        controls |= {token for token in self._control_tokens if len(token) > 1}
        pattern = "|".join(map(re.escape, sorted(controls, key=len, reverse=True)))
        parts = []
        for part in re.split(f"({pattern})", text):
            # The first character alone and the rest are not recognised as that token. The rest may
            # hold another one.
            parts += [part[:1], *self._literal_parts(part[1:])] if part in controls else [part]
        return parts

    def token_id_rows(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the token ids of several texts, uncut and unpadded: a list of lists of ints.

        Example:
        ```python
        tokenizer.token_id_rows(["In the beginning", "And"])
        ```
        """
        ids = self.tokenize(texts)
        return ids.to_list() if hasattr(ids, "to_list") else ids

    def control_token_ids(self) -> tuple[int, int]:
        """Returns the ids of `<start_of_turn>` and `<end_of_turn>`.

        Raises:
            ValueError: the vocabulary lacks one of them.

        Example:
        ```python
        start_of_turn, end_of_turn = tokenizer.control_token_ids()
        ```
        """
        ids = {token: self.token_to_id(token) for token in (self.start_of_turn, self.end_token2)}
        for token, id in ids.items():
            if self.id_to_token(id) != token:
                raise ValueError(
                    f"The vocabulary has no {token!r}, which the format of a conversation needs. "
                    "Use `generate`, or the tokenizer of an instruction-tuned model."
                )
        return tuple(ids.values())

    def turn_token_ids(self, role: str, content: str, is_first: bool = False) -> list[int]:
        """Returns the token ids of a turn of a conversation without its end.

        The text is `<start_of_turn>ROLE\\nCONTENT`, after a line break except in the first turn.
        Control tokens in the content are never recognised.

        Args:
            role: str, "user" or "model".
            content: str; white space around it is removed.
            is_first: bool, whether the turn is the first.

        Returns:
            list of ints.

        Example:
        ```python
        tokenizer.turn_token_ids("user", "What is a river?", is_first=True)
        ```
        """
        between = [] if is_first else self.literal_token_ids("\n")
        start_of_turn, _ = self.control_token_ids()
        return [*between, start_of_turn, *self.literal_token_ids(f"{role}\n{content.strip()}")]

    def set_proto(self, proto: StrPath | bytes | None) -> None:
        try:
            super().set_proto(proto)
        except ValueError:
            raise
        except Exception as error:  # classes of TensorFlow or SentencePiece
            name = repr(proto) if isinstance(proto, (str, pathlib.PurePath)) else "`proto`"
            raise ValueError(
                f"{name} cannot be read as a SentencePiece model. Fetch it again. {error}"
            ) from error
        has_end_token2 = self.proto is not None and self.end_token2 in self.get_vocabulary()
        self._end_token2_id = self.token_to_id(self.end_token2) if has_end_token2 else None

    def loaded_proto(self, proto: bytes) -> bytes:
        """Returns the bytes of a model that loads without a word; see `WrapsProcessors`."""
        return with_table(proto)

    def wrap_processor(self, processor: Any) -> Any:
        """Wraps a SentencePiece processor to keep a literal U+2581; see `WrapsProcessors`."""
        as_text = is_text(self.compute_dtype)
        return with_literal_spaces(processor, as_text, self._control_tokens)

    def wrap_graph_processor(self, processor: Any, proto: bytes) -> Any:
        """Wraps the processor of TensorFlow graphs likewise, if the tokenizer returns plain ids."""
        from keras_rgemma.text.tensorflow import with_literal_spaces as in_graphs

        if self.add_bos or self.add_eos or is_text(self.compute_dtype):
            return processor
        # The processor outside of graphs does not exist yet when this one is made.
        other = sentencepiece.SentencePieceProcessor(model_proto=proto)
        return in_graphs(processor, ids_of(other, spelled_apart(other, self._control_tokens)))


def is_text(dtype: object) -> bool:
    """Returns whether a tokenizer with this dtype returns strings instead of ids."""
    return "str" in str(dtype)
