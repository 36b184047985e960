"""Gives a SentencePiece model that normalizes nothing an empty table of rules to do so.

For each model without such a table, as all of Gemma's are, SentencePiece writes a line on standard
error when it is loaded ("precompiled_charsmap is empty"). Its level of logging is one for the whole
process, and TensorFlow Text has a copy of SentencePiece with a level that Python cannot reach. A
table without a rule says the same and is silent.
"""

import struct

_NORMALIZER = 3  # the number of the field `normalizer_spec` of a `ModelProto`
_TABLE = 2  # that of the field `precompiled_charsmap` of a `NormalizerSpec`
_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5  # kinds of fields
_FIXED = {_FIXED_64: 8, _FIXED_32: 4}


def with_table(model: bytes) -> bytes:
    """Adds an empty table of rules to a model that has none.

    Args:
        model: bytes, a serialized `ModelProto` of SentencePiece.

    Returns:
        bytes. A model with rules, and bytes that are no model, stay as they are.
    """
    try:
        has_rules = bool(_value(_value(model, _NORMALIZER), _TABLE))
    except (IndexError, ValueError):
        return model
    # A message that comes twice in a message of Protocol Buffers is read as one, field by field.
    return model if has_rules else model + _field(_NORMALIZER, _field(_TABLE, _empty_table()))


def _empty_table() -> bytes:
    """Writes a table of rules: the size of a double array, the array, and the texts it points to.

    The array is a trie of 256 units, a node each. The root, unit 0, has its child for a byte at
    1 XOR the byte, if that unit has the byte as its label. None has: unit 1 has the label 1, and
    the others the label 0.
    """
    units = struct.pack("<256I", 1 << 10, 1, *[0] * 254)
    return struct.pack("<I", len(units)) + units + b"\0"


def _field(number: int, value: bytes) -> bytes:
    """Writes a field of bytes."""
    return _varint(number << 3 | _BYTES) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    low = []
    while value > 127:
        low.append(value & 127 | 128)
        value >>= 7
    return bytes([*low, value])


def _value(message: bytes, number: int) -> bytes:
    """Finds the last value of a field of bytes in a message; b"" without one.

    Raises:
        IndexError, ValueError: the message is malformed.
    """
    value, place = b"", 0
    while place < len(message):
        key, place = _read_varint(message, place)
        kind = key & 7
        if kind == _BYTES:
            length, place = _read_varint(message, place)
            if place + length > len(message):
                raise ValueError("A field is longer than the message.")
            if key >> 3 == number:
                value = message[place : place + length]
            place += length
        elif kind == _VARINT:
            _, place = _read_varint(message, place)
        elif kind in _FIXED:
            place += _FIXED[kind]
        else:
            raise ValueError(f"There is no field of the kind {kind}.")
    return value


def _read_varint(message: bytes, place: int) -> tuple[int, int]:
    """Returns the number at a place of a message, and the place after it."""
    byte = message[place]
    if byte < 128:
        return byte, place + 1
    number, shift = byte & 127, 7
    while byte > 127:
        place += 1
        byte = message[place]
        number |= (byte & 127) << shift
        shift += 7
    return number, place + 1
