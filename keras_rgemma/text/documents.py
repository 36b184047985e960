"""Holds the tokens of examples as documents, and arranges documents in rows of arrays."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

# Inputs `token_ids` and `padding_mask`, labels and weights, each [B, T].
Rows: TypeAlias = tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]


class Document(NamedTuple):
    """Holds the tokens of an example.

    Attributes:
        ids: list of ints, start and end tokens included.
        loss_mask: list of bools, whether the loss falls on each token.
        is_text: bool, whether each part of the document is an example, too.
        end: list of ints, the last ids of a document that it keeps when it is cut.
        weight: float, what the loss of each token is multiplied by.
    """

    ids: list[int]
    loss_mask: list[bool]
    is_text: bool
    end: Sequence[int] = ()
    weight: float = 1


def pieces(document: Document, length: int) -> Iterator[Document]:
    """Cuts a document into parts with `length` tokens to predict, which overlap by one token."""
    for start in range(0, len(document.ids) - 1, length):
        part = slice(start, start + length + 1)
        yield document._replace(ids=document.ids[part], loss_mask=document.loss_mask[part])


def cut(document: Document, length: int) -> Document:
    """Cuts a document to `length` tokens to predict; its `end` stays."""
    ids, loss_mask = document.ids[: length + 1], document.loss_mask[: length + 1]
    end = list(document.end)
    return document._replace(ids=ids[: len(ids) - len(end)] + end, loss_mask=loss_mask)


def arrays(
    rows: Sequence[Mapping[int, Document]], length: int, pad: int, shows_end: bool = False
) -> Rows:
    """Makes `(x, y, sample_weight)` of rows. The last token of a document predicts nothing.

    Args:
        rows: list of dicts of a number in `padding_mask` to the `Document` of that number.
        length: int, T.
        pad: int, the token id that fills a row.
        shows_end: bool, whether a text, alone in its row, has its last token among the inputs if
            there is room, as KerasHub makes rows. No label depends on it.
    """
    token_ids, y = np.full((2, len(rows), length), pad, "int32")
    padding_mask = np.zeros((len(rows), length), "int32")
    is_weighted = any(document.weight != 1 for row in rows for document in row.values())
    sample_weight = np.zeros((len(rows), length), "float32" if is_weighted else "int32")
    for row, packed in enumerate(rows):
        end = 0  # a document without tokens takes no place
        for number, document in packed.items():
            place = row, slice(end, end := end + max(0, len(document.ids) - 1))
            token_ids[place], y[place] = document.ids[:-1], document.ids[1:]
            padding_mask[place] = number
            sample_weight[place] = np.multiply(document.loss_mask[1:], document.weight)
            if shows_end and document.is_text and document.ids and end < length:
                token_ids[row, end], padding_mask[row, end] = document.ids[-1], number
    return {"token_ids": token_ids, "padding_mask": padding_mask}, y, sample_weight
