"""Reads `tokenizer.json`, Hugging Face's file of a tokenizer, as a SentencePiece model.

A fine-tune that transformers 5 saved has no other file of its tokenizer. Files that derive from
Gemma's tokenizer give the ids that Hugging Face gives; a setting that a SentencePiece model cannot
have is refused. Text is read as by every `RGemmaTokenizer`, so there is one difference: U+2581 in a
text stays that character, and is spelled with its bytes; Hugging Face takes it for a space.
What the file says about tokens around a text (`post_processor`, `padding`, `truncation`) is not
read: `RGemmaCausalLMPreprocessor` adds those.
"""

import itertools
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping
from typing import Any, NamedTuple

from keras_rgemma.checkpoints import sentencepiece_model as spm
from keras_rgemma.checkpoints.bpe_merges import Inexpressible, order_of
from keras_rgemma.checkpoints.sentencepiece_model import Piece
from keras_rgemma.checkpoints.tokenizer_fields import (
    SPACE,
    AddedToken,
    added_tokens_in,
    by_id,
    check_settings,
    merges_in,
    vocabulary_in,
)
from keras_rgemma.files import read_json
from keras_rgemma.types import StrPath

FILE = "tokenizer.json"
_MASK = "<mask>"  # which transformers adds to a vocabulary of Gemma's kind that lacks it
# The kind of these is CONTROL in Gemma's own tokenizer.model: they decode to no text.
_CONTROL = ("<pad>", "<eos>", "<bos>")
_BYTES = dict.fromkeys(f"<0x{byte:02X}>" for byte in range(256))
_TAB, _TAB_BYTE = "\t", "<0x09>"


class Tokenizer(NamedTuple):
    """Describes a tokenizer that was read.

    Attributes:
        proto: bytes of a SentencePiece model.
        control_tokens: tuple of str, the special tokens, as of `RGemmaTokenizer`.
    """

    proto: bytes
    control_tokens: tuple[str, ...]


def is_hugging_face(contents: Container[str]) -> bool:
    """Checks whether a `tokenizer.json` is Hugging Face's: Keras presets have one, too."""
    return "model" in contents


def tokens(contents: Mapping[str, Any], vocabulary_size: int | None = None) -> list[str] | None:
    """Lists the tokens of a tokenizer in the order of their ids, as a SentencePiece model has them.

    Args:
        contents: dict, the contents of a `tokenizer.json`.
        vocabulary_size: int or None, as of `read`.

    Returns:
        list of str, or None for a file that `read` refuses.
    """
    try:
        added = _with_embeddings(added_tokens_in(contents), vocabulary_size)
        texts = by_id(vocabulary_in(contents), added)
    except Inexpressible:
        return None
    spelled = {token.text: token.piece for token in added}
    spelled |= {} if _TAB_BYTE in texts else {_TAB: _TAB_BYTE}
    return [spelled.get(text, text) for text in texts]


def read(path: StrPath, vocabulary_size: int | None = None) -> Tokenizer:
    """Reads a `tokenizer.json`.

    Args:
        path: str or path.
        vocabulary_size: int, the number of the model's embeddings; None if there is no model. The
            token `<mask>`, which transformers appends to a vocabulary of Gemma's kind by itself, is
            left out where the model has no embedding for it.

    Returns:
        `Tokenizer`.

    Raises:
        ValueError: the file is broken, or has a setting that a SentencePiece model cannot have.
    """
    contents = read_json(path)
    try:
        check_settings(contents)
        return _convert(contents, vocabulary_size)
    except Inexpressible as error:
        raise ValueError(
            f"{str(path)!r} cannot be read as a SentencePiece model: {error}. Load the model with "
            "`preprocessor=None`, and give it the token ids of Hugging Face's tokenizer."
        ) from error


def _convert(contents: Mapping[str, Any], vocabulary_size: int | None) -> Tokenizer:
    added = _with_embeddings(added_tokens_in(contents), vocabulary_size)
    texts = by_id(vocabulary_in(contents), added)
    unknown = contents["model"].get("unk_token")
    if unknown not in texts:
        raise Inexpressible(f"`model.unk_token` is {unknown!r}, which must be in the vocabulary")
    added = {token.text: token for token in added if _is_found(token, added)}
    bytes_ = {*_BYTES} if _TAB_BYTE in texts else {*_BYTES, _TAB}
    if both := bytes_ & added.keys():
        raise Inexpressible(f"the added token {min(both)!r} is the token of a byte, too")
    kinds = {text: _kind(text, added, unknown, bytes_) for text in texts}
    recognised = {token.piece for token in added.values()}
    mergeable = {text for text in texts if kinds[text] == spm.NORMAL}
    places, runs = order_of(merges_in(contents), mergeable, recognised)
    kinds |= dict.fromkeys(runs, spm.USER_DEFINED)
    _check_overlaps(added.values(), kinds, runs)
    pieces = []
    for text in texts:
        piece = added[text].piece if text in added else text
        piece = _TAB_BYTE if kinds[text] == spm.BYTE and text == _TAB else piece
        is_merged = kinds[text] == spm.NORMAL
        score = -1.0 - places.get(text, len(places)) if is_merged else 0.0
        pieces.append(spm.Piece(piece, kinds[text], score))
    _check_pieces(pieces)
    return Tokenizer(spm.serialize(pieces), tuple(x.text for x in added.values() if x.is_special))


def _is_found(token: AddedToken, added: Iterable[AddedToken]) -> bool:
    """Checks whether an added token can be found in a text.

    A U+2581 is never looked for as one, and Hugging Face cuts out the tokens that are not
    normalized before it looks for the others.
    """
    if not token.is_normalized:
        return SPACE not in token.text
    others = (other for other in added if not other.is_normalized and SPACE not in other.text)
    return not any(other.piece in token.piece for other in others)


def _kind(text: str, added: Mapping[str, AddedToken], unknown: str, bytes_: Container[str]) -> int:
    """Returns the kind of a token's piece."""
    if text == unknown:
        return spm.UNKNOWN
    if text in bytes_:
        return spm.BYTE
    if text in added:
        return spm.CONTROL if text in _CONTROL and added[text].is_special else spm.USER_DEFINED
    return spm.NORMAL


def _with_embeddings(added: list[AddedToken], vocabulary_size: int | None) -> list[AddedToken]:
    """Leaves out a `<mask>` that the model has no embedding for, and refuses other such tokens."""
    if vocabulary_size is None:
        return added
    beyond = [token for token in added if token.id >= vocabulary_size and token.text != _MASK]
    if beyond:
        raise Inexpressible(
            f"the added token {beyond[0].text!r} has the id {beyond[0].id}, but the model has "
            f"{vocabulary_size} embeddings: in transformers, call "
            "`model.resize_token_embeddings(len(tokenizer))`, and save the model again"
        )
    return [token for token in added if token.id < vocabulary_size]


def _check_overlaps(added: Iterable[AddedToken], kinds: Mapping[str, int], runs: set[str]) -> None:
    """Raises `Inexpressible` if two tokens may overlap in a text and others cut them out first.

    Hugging Face cuts out the tokens that are not normalized, then the normalized ones, then it
    merges. `RGemmaTokenizer` cuts out those of `_CONTROL` and the unknown token, then all others.
    Within one go both take the leftmost, and the longest of those.
    """
    groups = defaultdict(set)
    for token in added:
        is_first = kinds[token.text] in (spm.CONTROL, spm.UNKNOWN)
        groups[token.is_normalized, is_first].add(token.piece)
    groups["merged by Hugging Face"] = runs
    for one, other in itertools.combinations(groups.values(), 2):
        for pair in itertools.product(one, other):
            if _may_overlap(*pair):
                raise Inexpressible(
                    f"the added tokens {pair[0]!r} and {pair[1]!r} may overlap in a text, and "
                    "SentencePiece would look for the other one first"
                )


def _may_overlap(a: str, b: str) -> bool:
    """Checks whether one text contains the other, or ends as the other begins."""
    if a[-1] not in b and b[-1] not in a:
        return False
    return (
        a in b
        or b in a
        or any(a[-n:] == b[:n] or b[-n:] == a[:n] for n in range(1, min(len(a), len(b))))
    )


def _check_pieces(pieces: Iterable[Piece]) -> None:
    """Raises `Inexpressible` if a SentencePiece model cannot have these pieces together."""
    texts = {}
    for id, piece in enumerate(pieces):
        is_matched = piece.kind == spm.USER_DEFINED
        if not piece.text or (is_matched and "\0" in piece.text):
            raise Inexpressible(f"the token {piece.text!r} is empty, or has a zero byte in it")
        if texts.setdefault(piece.text, id) != id:
            raise Inexpressible(
                f"the tokens {texts[piece.text]} and {id} are both {piece.text!r}, in which "
                "U+2581 is a space: supported is one token for a text"
            )
    missing = [byte for byte in _BYTES if byte not in texts]
    if missing:
        raise Inexpressible(
            f"`model.byte_fallback` needs all bytes, and there is no {missing[0]!r}"
        )
