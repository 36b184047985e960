"""Writes SentencePiece models: the pieces of a vocabulary, with their kinds and scores.

The package sentencepiece has a compiled module for this format, which works with few versions of
protobuf, and TensorFlow and notebooks pin others. The format is small and has not changed.
"""

import struct
from typing import NamedTuple

# Kinds of pieces, and below the numbers of fields: those of sentencepiece_model.proto.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
_BPE = 2
_NAMES = ("unk", "bos", "eos", "pad")


class Piece(NamedTuple):
    """Describes a token of a vocabulary.

    Attributes:
        text: str, with U+2581 for spaces.
        kind: `NORMAL`, `UNKNOWN`, `CONTROL`, `USER_DEFINED` or `BYTE`.
        score: float; the pair of neighbours that joins to the piece of highest score is merged.
    """

    text: str
    kind: int
    score: float = 0.0


def serialize(pieces):
    """Makes a SentencePiece BPE model with Gemma's settings: text stays as it is, bytes spell
    unknown characters, and the unknown token is written out by its name.

    Args:
        pieces: list of `Piece`, in the order of their ids, one of them `UNKNOWN`.

    Returns:
        bytes.
    """
    ids = {piece.text: id for id, piece in enumerate(pieces)}
    unknown = next(piece.text for piece in pieces if piece.kind == UNKNOWN)
    trainer = [_field(3, _BPE), _field(4, len(pieces)), _field(35, True), _field(44, unknown)]
    for place, name in enumerate(_NAMES):
        text = unknown if name == "unk" else f"<{name}>"
        if text in ids:
            trainer += [_field(40 + place, ids[text]), _field(45 + place, text)]
    # No dummy prefix, spaces kept in their number and written as U+2581.
    normalizer = [_field(1, "identity"), _field(3, False), _field(4, False), _field(5, True)]
    return b"".join(
        [
            *(
                _field(1, _field(1, piece.text) + _field(2, piece.score) + _field(3, piece.kind))
                for piece in pieces
            ),
            _field(2, b"".join(trainer)),
            _field(3, b"".join(normalizer)),
        ]
    )


def _field(number, value):
    """Encodes a field of a message: an int, bool, float, str, or the bytes of a message."""
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(number):
    """Encodes a non-negative int, seven bits a byte."""
    digits = []
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    return bytes([*digits, number])
