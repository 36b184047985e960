"""Writes SentencePiece models (pieces with their kinds and scores), and reads the kinds.

The package sentencepiece has a compiled module for this format, which works with few versions of
protobuf, and TensorFlow and notebooks pin others. The format is small and has not changed.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

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


def serialize(pieces: Sequence[Piece]) -> bytes:
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


def kinds_of(model: bytes) -> list[int]:
    """Lists the kinds of the pieces of a model, in the order of their ids.

    Args:
        model: bytes, as of `serialize`.

    Returns:
        list of int.
    """
    return [
        next((value for number, value in _fields(piece) if number == 3), NORMAL)
        for number, piece in _fields(model)
        if number == 1
    ]


def _field(number: int, value: int | float | str | bytes) -> bytes:
    """Encodes a field of a message: an int, bool, float, str, or the bytes of a message."""
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(number: int) -> bytes:
    """Encodes a non-negative int, seven bits a byte."""
    digits = []
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    return bytes([*digits, number])


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yields the number and the value of each field of a message, an int or bytes."""
    place = 0
    while place < len(message):
        key, place = _read_varint(message, place)
        if key & 7 == 0:
            value, place = _read_varint(message, place)
        else:
            size, place = (
                _read_varint(message, place) if key & 7 == 2 else ({1: 8, 5: 4}[key & 7], place)
            )
            value, place = message[place : place + size], place + size
        yield key >> 3, value


def _read_varint(message: bytes, place: int) -> tuple[int, int]:
    """Returns a number that begins at a place, and the place behind it."""
    number = shift = 0
    while message[place] > 127:
        number |= (message[place] & 127) << shift
        place, shift = place + 1, shift + 7
    return number | message[place] << shift, place + 1
