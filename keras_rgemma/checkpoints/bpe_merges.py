"""Turns the merges of Hugging Face's BPE into the scores of SentencePiece's.

Hugging Face joins the two neighbours whose merge comes first in a list; SentencePiece the two whose
joined piece has the highest score, whichever pair makes it. Both take the leftmost of equals. They
give the same tokens if every pair that joins to a piece is in the list, and the merges that make
one piece lie side by side there: as in all lists that transformers makes from a SentencePiece
model. One exception is known: Gemma's runs of a character (see `_eager_runs`).
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence


class Inexpressible(ValueError):
    """Reports a setting of a tokenizer that a SentencePiece model cannot have."""


def order_of(
    merges: Sequence[tuple[str, str]], pieces: set[str], recognised: set[str]
) -> tuple[dict[str, int], set[str]]:
    """Finds the order in which SentencePiece must prefer pieces.

    Args:
        merges: list of pairs of str, the preferred ones first.
        pieces: set of str, the tokens that can be merged to, and those of one character.
        recognised: set of str, tokens that are cut out of a text before anything is merged.

    Returns:
        A pair: dict of a piece to its place in the order, and a set of the pieces that must be cut
        out of a text instead, the longest first.

    Raises:
        Inexpressible: SentencePiece would merge otherwise, whatever the scores.
    """
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    runs = _eager_runs(ranks, pieces)
    is_never_merged = _finder(recognised | runs)
    merges_to = defaultdict(dict)
    for (left, right), rank in ranks.items():
        if not is_never_merged(left + right):
            merges_to[left + right][len(left)] = rank
    reachable = {x for x in pieces if len(x) > 1 and not is_never_merged(x)}
    for piece in sorted(reachable | set(merges_to)):
        joins = _joins(piece, pieces) if piece in pieces else set()
        for cut in joins ^ set(merges_to.get(piece, ())):
            is_lacking, pair = cut in joins, (piece[:cut], piece[cut:])
            raise Inexpressible(
                f"`model.merges` {'lacks' if is_lacking else 'holds'} {pair!r}, which "
                f"SentencePiece {'always' if is_lacking else 'never'} joins: supported are merges "
                "that were made from a SentencePiece model"
            )
    return _ordered(merges_to), runs


def _joins(piece: str, pieces: set[str]) -> set[int]:
    """Returns the places at which a piece is cut into two that SentencePiece would join."""
    return {
        cut
        for cut in range(1, len(piece))
        if all(len(part) == 1 or part in pieces for part in (piece[:cut], piece[cut:]))
    }


def _ordered(merges_to: Mapping[str, Mapping[int, int]]) -> dict[str, int]:
    """Orders pieces by the ranks of their merges, which must not lie between those of another."""
    ordered = sorted(merges_to, key=lambda piece: min(merges_to[piece].values()))
    for first, second in itertools.pairwise(ordered):
        if max(merges_to[first].values()) > min(merges_to[second].values()):
            raise Inexpressible(
                f"`model.merges` prefers some pairs that make {first!r} to some that make "
                f"{second!r}, and others the other way round: supported are merges whose order is "
                "that of what they make, as in Gemma's tokenizer"
            )
    return {piece: place for place, piece in enumerate(ordered)}


def _eager_runs(ranks: Mapping[tuple[str, str], int], pieces: set[str]) -> set[str]:
    """Finds runs of one character that are always joined first, and from the left.

    In Gemma's own tokenizer.json the merges that make 2 to K spaces are sorted by the length of the
    left half, the longest first. So a run grows by one character at a time, to K, before anything
    else happens to its characters: the same as if the longest runs were cut out of the text.

    Args:
        ranks: dict of a pair of str to the place of its merge.
        pieces: set of str.

    Returns:
        set of str, the runs.
    """
    lengths = defaultdict(set)
    for piece in pieces:
        if len(piece) > 1 and piece == piece[0] * len(piece):
            lengths[piece[0]].add(len(piece))
    runs = set()
    for character, counts in lengths.items():
        longest = max(counts)
        grows = [ranks.get((character * n, character), len(ranks)) for n in range(1, longest)]
        # Without a third length there is one merge alone, which a score can express.
        is_eager = longest > 2 and len(counts) == longest - 1
        is_eager = is_eager and max(grows[1:]) < grows[0] < len(ranks)
        if is_eager and _come_first(character, longest, grows[0], ranks):
            runs |= {character * n for n in counts}
    return runs


def _come_first(
    character: str, longest: int, first: int, ranks: Mapping[tuple[str, str], int]
) -> bool:
    """Checks that no other merge has a run in it, and none of its character comes earlier."""
    family = {character * n for n in range(1, longest + 1)}
    return all(
        (rank > first and family.isdisjoint({left, right} - {character}))
        or left + right in family
        or family.isdisjoint((left, right))
        for (left, right), rank in ranks.items()
    )


def _finder(texts: Iterable[str]) -> Callable[[str], bool]:
    """Returns a function that checks whether a str holds one of some texts.

    One pattern of all of them would take minutes: there are thousands, and the strs are a million.
    """
    by_head = defaultdict(tuple)
    for text in texts:
        by_head[text[:2]] += (text,)
    # Heads of one character, which are whole texts, come first; a look-ahead finds overlaps.
    heads = "|".join(map(re.escape, sorted(by_head, key=len))) or r"(?!)"
    pattern = re.compile(f"(?=({heads}))")

    def holds(text: str) -> bool:
        return any(
            text.startswith(by_head[head[1]], head.start()) for head in pattern.finditer(text)
        )

    return holds
