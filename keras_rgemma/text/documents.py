"""Holds the tokens of examples as documents, and arranges documents in rows of arrays."""

from typing import NamedTuple

import numpy as np


class Document(NamedTuple):
    """Holds the tokens of an example.

    Attributes:
        ids: list of ints, start and end tokens included.
        loss_mask: list of bools, whether the loss falls on each token.
        is_text: bool, whether each part of the document is an example, too.
    """

    ids: list
    loss_mask: list
    is_text: bool


def pieces(document, length):
    """Cuts a document into parts with `length` tokens to predict, which overlap by one token."""
    for start in range(0, len(document.ids) - 1, length):
        part = slice(start, start + length + 1)
        yield Document(document.ids[part], document.loss_mask[part], document.is_text)


def arrays(rows, length, pad):
    """Makes `(x, y, sample_weight)` of rows. The last token of a document predicts nothing.

    Args:
        rows: list of dicts of a number in `padding_mask` to the `Document` of that number.
        length: int, T.
        pad: int, the token id that fills a row.
    """
    token_ids, y = np.full((2, len(rows), length), pad, "int32")
    padding_mask, sample_weight = np.zeros((2, len(rows), length), "int32")
    for row, packed in enumerate(rows):
        end = 0  # a document without tokens takes no place
        for number, document in packed.items():
            place = row, slice(end, end := end + max(0, len(document.ids) - 1))
            token_ids[place], y[place] = document.ids[:-1], document.ids[1:]
            padding_mask[place], sample_weight[place] = number, document.loss_mask[1:]
    return {"token_ids": token_ids, "padding_mask": padding_mask}, y, sample_weight
