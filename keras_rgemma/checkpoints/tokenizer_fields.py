"""Reads the parts of `tokenizer.json`, Hugging Face's file of a tokenizer, and checks them.

Supported are the settings of Gemma's tokenizer: BPE with bytes for unknown characters, whose
normalizer writes spaces as U+2581 and does nothing else.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from keras_rgemma.checkpoints.bpe_merges import Inexpressible

SPACE = "\u2581"
_SHOWN = 160  # characters of a value in an error

# Parts of the file, each with the key of its steps and the lists of steps that are supported.
_PARTS = {
    "normalizer": (
        "normalizers",
        [[{"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]],
    ),
    "pre_tokenizer": (
        "pretokenizers",
        # There is no space left to split at.
        [
            [],
            [
                {
                    "type": "Split",
                    "pattern": {"String": " "},
                    "behavior": "MergedWithPrevious",
                    "invert": False,
                }
            ],
        ],
    ),
    "decoder": (
        "decoders",
        [
            [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ]
        ],
    ),
}
# Settings of the model and their supported values; with all bytes there is no unknown character.
_MODEL = {
    "type": ("BPE",),
    "byte_fallback": (True,),
    "dropout": (None, 0),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "ignore_merges": (None, False),
}
_READ = ("vocab", "merges", "unk_token", "fuse_unk")
_TOKEN = ("content", "id", "normalized", "special")


class AddedToken(NamedTuple):
    """Describes a token that is cut out of a text before anything is merged."""

    text: str
    id: int
    is_special: bool
    is_normalized: bool

    @property
    def piece(self) -> str:
        return self.text.replace(" ", SPACE)


def check_settings(contents: Mapping[str, Any]) -> None:
    """Raises `Inexpressible` for a setting that a SentencePiece model cannot have."""
    for name, (key, supported) in _PARTS.items():
        part = contents.get(name)
        steps = [] if part is None else [part]
        if isinstance(part, dict) and part.get("type") == "Sequence":
            steps = part.get(key)
        if steps not in supported:
            raise _unsupported(name, part, supported)
    model = contents.get("model")
    if not isinstance(model, dict):
        raise _unsupported("model", model, ["an object"])
    for name, supported in _MODEL.items():
        if model.get(name) not in supported:
            raise _unsupported(f"model.{name}", model.get(name), supported)
    for name, value in model.items():
        if name not in _MODEL and name not in _READ and value:
            raise _unsupported(f"model.{name}", value, [None, False])


def _unsupported(name: str, value: Any, supported: Iterable[Any]) -> Inexpressible:
    values = " or ".join(map(repr, supported))
    return Inexpressible(f"`{name}` is {repr(value)[:_SHOWN]}; supported is {values}")


def vocabulary_in(contents: Mapping[str, Any]) -> dict[str, int]:
    """Returns the dict of a token to its id, without the tokens that were added."""
    model = contents.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocabulary, dict) or not all(type(id) is int for id in vocabulary.values()):
        raise Inexpressible("`model.vocab` must be an object of tokens and their ids")
    return vocabulary


def added_tokens_in(contents: Mapping[str, Any]) -> list[AddedToken]:
    """Returns the list of `AddedToken`."""
    added = []
    for token in contents.get("added_tokens") or []:
        content, id = map(token.get, _TOKEN[:2]) if isinstance(token, dict) else (None, None)
        if not (isinstance(content, str) and content and type(id) is int):
            raise _unsupported("added_tokens", token, ["an object with `content` and `id`"])
        for name, value in token.items():
            if name not in _TOKEN and value:
                raise _unsupported(
                    f"{name}` of the added token `{token['content']}", value, [False]
                )
        flags = (bool(token.get(name)) for name in ("special", "normalized"))
        added.append(AddedToken(content, id, *flags))
    return added


def by_id(vocabulary: Mapping[str, int], added: Iterable[AddedToken]) -> list[str]:
    """Lists the tokens in the order of their ids, which must be 0, 1, 2, ..."""
    ids = dict(vocabulary)
    for token in added:
        if ids.setdefault(token.text, token.id) != token.id:
            raise Inexpressible(
                f"`id` of the added token {token.text!r} is {token.id}; in `model.vocab` it is "
                f"{ids[token.text]}, which Hugging Face takes: supported is the same id in both"
            )
    texts = sorted(ids, key=ids.get)
    for place, text in enumerate(texts):
        if ids[text] != place:
            raise Inexpressible(
                f"the id of the token {text!r} is {ids[text]}, and no token has the id {place}: "
                "supported are ids without gaps, each of one token"
            )
    return texts


def merges_in(contents: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns the list of pairs of tokens to merge, in both spellings of the file."""
    merges, vocabulary = contents["model"].get("merges"), contents["model"]["vocab"]
    if not isinstance(merges, list):
        raise _unsupported("model.merges", merges, ["a list of pairs"])
    pairs = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in merges]
    for pair in pairs:
        if len(pair) != 2 or not {*pair, "".join(pair)} <= vocabulary.keys():
            raise _unsupported("model.merges", pair, ["a pair of tokens that joins to a token"])
    return pairs
