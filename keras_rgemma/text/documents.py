"""Documents: the tokens of examples, and rows of arrays made of them."""

from typing import NamedTuple

import numpy as np


class Document(NamedTuple):
    """The tokens of an example.

    Attributes:
        ids: list of ints, start and end tokens included.
        counts: list of bools, whether the loss falls on a token.
        is_text: bool, whether a part of it is an example, too.
    """

    ids: list
    counts: list
    is_text: bool


def pieces(document, length):
    """Parts of a document with `length` tokens to predict each, which overlap by one token."""
    for start in range(0, len(document.ids) - 1, length):
        part = slice(start, start + length + 1)
        yield Document(document.ids[part], document.counts[part], document.is_text)


def arrays(rows, length, pad):
    """`(x, y, sample_weight)` of rows. The last token of a document predicts nothing.

    Args:
        rows: list of dicts of a number in the mask to the `Document` that has it.
        length: int, T.
        pad: int, the id of what fills a row.
    """
    token_ids, y = np.full((2, len(rows), length), pad, "int32")
    padding_mask, sample_weight = np.zeros((2, len(rows), length), "int32")
    for row, packed in enumerate(rows):
        end = 0  # a document of no tokens has none to predict, and takes no place
        for number, document in packed.items():
            place = row, slice(end, end := end + max(0, len(document.ids) - 1))
            token_ids[place], y[place] = document.ids[:-1], document.ids[1:]
            padding_mask[place], sample_weight[place] = number, document.counts[1:]
    return {"token_ids": token_ids, "padding_mask": padding_mask}, y, sample_weight
