"""Finds the beginnings that rows of tokens share, which are to be read once."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Branch(NamedTuple):
    """Describes rows that share a beginning.

    Attributes:
        tokens: list of ints, that beginning; below another branch only what comes after its own.
        leaves: list of ints, the indices of the rows that share no more with one another.
        branches: list of `Branch`, of the rows that do.
    """

    tokens: list[int]
    leaves: list[int]
    branches: list[Branch]

    def rows(self) -> list[int]:
        """Lists the indices of all rows of this branch."""
        return [*self.leaves, *itertools.chain(*(branch.rows() for branch in self.branches))]


def shared_beginnings(rows: Sequence[list[int]], shortest: int = 16) -> Branch:
    """Sorts rows into a tree of the beginnings that at least two of them share.

    Args:
        rows: list of lists of ints.
        shortest: int, the fewest tokens of a branch: reading fewer once saves nothing.

    Returns:
        `Branch`, whose own beginning is empty.

    Example:
    ```python
    tree = shared_beginnings([[1, 2, 3], [1, 2, 4], [5]], shortest=2)
    tree.branches[0].tokens, tree.leaves  # [1, 2], [2]
    ```
    """
    order = sorted(range(len(rows)), key=rows.__getitem__)
    return Branch([], *_divide(rows, order, 0, shortest))


def _divide(
    rows: Sequence[list[int]], order: Iterable[int], start: int, shortest: int
) -> tuple[list[int], list[Branch]]:
    """Returns the leaves and branches of sorted rows whose first `start` tokens are the same."""
    leaves, branches = [], []
    for head, group in itertools.groupby(order, lambda i: rows[i][start : start + shortest]):
        group = list(group)
        if len(group) == 1 or len(head) < shortest:
            leaves += group
            continue
        stop = start + _shared(rows[group[0]][start:], rows[group[-1]][start:])
        tokens = rows[group[0]][start:stop]
        branches.append(Branch(tokens, *_divide(rows, group, stop, shortest)))
    return leaves, branches


def _shared(row: Sequence[int], other: Sequence[int]) -> int:
    """Counts the first tokens that are the same in two rows."""
    pairs = zip(row, other, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(row), len(other)))
