"""Lets SentencePiece keep a literal U+2581, and recognise control tokens in a text.

SentencePiece writes a space as U+2581, so it reads a U+2581 in a text as a space. Where the
vocabulary has byte pieces the character is spelled with its three bytes instead, and every text
comes back as it went in. Control tokens (`<bos>`, `<eos>`, ...) have no text for SentencePiece;
Hugging Face's tokenizers recognise them. Both are cut out of a text before SentencePiece reads it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import sentencepiece


SPACE = "\u2581"
SPACE_BYTES = ("<0xE2>", "<0x96>", "<0x81>")


def spelled_apart(
    processor: sentencepiece.SentencePieceProcessor, control_tokens: Sequence[str] = ()
) -> dict[str, list[str]]:
    """Returns the texts to cut out of a text, and how to spell them.

    Args:
        processor: `sentencepiece.SentencePieceProcessor`.
        control_tokens: sequence of str, the tokens to recognise in a text.

    Returns:
        dict of a str to a list of pieces. It lacks U+2581 if bytes cannot spell this character:
        where the vocabulary has no byte pieces, or where each part of a split text would get a
        space of its own (SentencePiece's dummy prefix).
    """
    ids = [processor.PieceToId(piece) for piece in SPACE_BYTES]
    has_prefix = processor.EncodeAsPieces("a")[0].startswith(SPACE)
    cannot = processor.unk_id() in ids or has_prefix
    spelled = {} if cannot else {SPACE: list(SPACE_BYTES)}
    for token in control_tokens:
        id = processor.PieceToId(token)
        # SentencePiece recognises all others itself.
        if processor.IdToPiece(id) == token and (
            processor.IsControl(id) or id == processor.unk_id()
        ):
            spelled[token] = [token]
    return spelled


def with_literal_spaces(
    processor: Any, as_text: bool = False, control_tokens: Sequence[str] = ()
) -> Any:
    """Wraps a `SentencePieceProcessor` so that it encodes some texts apart (`spelled_apart`).

    Args:
        processor: `sentencepiece.SentencePieceProcessor`.
        as_text: bool, whether the processor returns pieces instead of ids.
        control_tokens: sequence of str, the tokens to recognise in a text.

    Returns:
        The wrapper, or the processor itself where there is nothing to encode apart.
    """
    spelled = spelled_apart(processor, control_tokens)
    if not spelled:
        return processor
    return _Encoder(processor, spelled if as_text else ids_of(processor, spelled))


def ids_of(processor: Any, spelled: Mapping[str, list[str]]) -> dict[str, list[int]]:
    """Converts the pieces of a dict as of `spelled_apart` to ids."""
    return {
        text: [processor.PieceToId(piece) for piece in pieces] for text, pieces in spelled.items()
    }


class Wrapper:
    """Stands for another object: attributes that the wrapper lacks are those of the object.

    Args:
        wrapped: the other object.
        spelled: what the wrapper encodes itself, and how.
    """

    def __init__(self, wrapped: Any, spelled: Any) -> None:
        self.wrapped = wrapped
        self.spelled = spelled

    def __getattr__(self, name: str) -> Any:
        if name == "wrapped":  # while a copy is being made
            raise AttributeError(name)
        return getattr(self.wrapped, name)


class _Encoder(Wrapper):
    """Wraps a processor with an `Encode` that cuts out the texts that have a spelling."""

    def __init__(self, wrapped: Any, spelled: Mapping[str, list[Any]]) -> None:
        super().__init__(wrapped, spelled)
        self.pattern = re.compile(f"({'|'.join(map(re.escape, spelled))})")

    def Encode(
        self, texts: Sequence[str], add_bos: bool = False, add_eos: bool = False
    ) -> list[list[Any]]:
        """Returns the tokens of each of a list of texts."""
        if not any(self.pattern.search(text) for text in texts):
            return self.wrapped.Encode(texts, add_bos=add_bos, add_eos=add_eos)
        return [self._encode(text, add_bos, add_eos) for text in texts]

    def _encode(self, text: str, add_bos: bool, add_eos: bool) -> list[Any]:
        parts = self.pattern.split(text)
        last = len(parts) - 1
        tokens = []
        for i, part in enumerate(parts):
            if i % 2:
                tokens += self.spelled[part]
                continue
            tokens += self.wrapped.Encode(
                part, add_bos=add_bos and i == 0, add_eos=add_eos and i == last
            )
        return tokens
