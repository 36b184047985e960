"""Lets SentencePiece keep a literal U+2581.

SentencePiece writes a space as U+2581, so it reads a U+2581 in a text as a space. Where the
vocabulary has byte pieces the character is spelled with its three bytes instead, and every text
comes back as it went in.
"""

SPACE = "\u2581"
SPACE_BYTES = ("<0xE2>", "<0x96>", "<0x81>")


def space_ids(processor):
    """Returns the ids of the bytes of U+2581, or None if bytes cannot spell this character.

    They cannot where the vocabulary has no byte pieces, or where each part of a split text would
    get a space of its own (SentencePiece's dummy prefix).
    """
    ids = [processor.PieceToId(piece) for piece in SPACE_BYTES]
    has_prefix = processor.EncodeAsPieces("a")[0].startswith(SPACE)
    return None if processor.unk_id() in ids or has_prefix else ids


def with_literal_spaces(processor, as_text=False):
    """Wraps a `SentencePieceProcessor` so that it encodes U+2581 as its bytes.

    Args:
        processor: `sentencepiece.SentencePieceProcessor`.
        as_text: bool, whether the processor returns pieces instead of ids.

    Returns:
        The wrapper, or the processor itself where bytes cannot spell U+2581 (`space_ids`).
    """
    ids = space_ids(processor)
    if ids is None:
        return processor
    return _Encoder(processor, list(SPACE_BYTES) if as_text else ids)


class Wrapper:
    """Stands for another object: attributes that the wrapper lacks are those of the object.

    Args:
        wrapped: the other object.
        space_tokens: list of the tokens that spell U+2581.
    """

    def __init__(self, wrapped, space_tokens):
        self.wrapped = wrapped
        self.space_tokens = space_tokens

    def __getattr__(self, name):
        if name == "wrapped":  # while a copy is being made
            raise AttributeError(name)
        return getattr(self.wrapped, name)


class _Encoder(Wrapper):
    """Wraps a processor with an `Encode` that splits texts at U+2581."""

    def Encode(self, texts, add_bos=False, add_eos=False):
        """Returns the tokens of each of a list of texts."""
        if not any(SPACE in text for text in texts):
            return self.wrapped.Encode(texts, add_bos=add_bos, add_eos=add_eos)
        return [self._encode(text, add_bos, add_eos) for text in texts]

    def _encode(self, text, add_bos, add_eos):
        parts = text.split(SPACE)
        last = len(parts) - 1
        tokens = []
        for i, part in enumerate(parts):
            tokens += self.space_tokens if i else []
            tokens += self.wrapped.Encode(
                part, add_bos=add_bos and i == 0, add_eos=add_eos and i == last
            )
        return tokens
