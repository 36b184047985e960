"""Packs several documents into a row, so that few positions are pads."""

from collections.abc import Iterable, Iterator

from keras_rgemma.text.documents import Document

_OPEN_ROWS = 64  # rows that wait for more documents


def pack(documents: Iterable[Document], length: int) -> Iterator[list[Document]]:
    """Puts each document into the fullest row that has room for it.

    Args:
        documents: iterable of `Document`, with at most `length` + 1 tokens each: the last token
            takes up no position.
        length: int, positions of a row.

    Yields:
        Lists of documents, one list a row: a row that is full, or the fullest when many wait.
    """
    rows = []  # pairs of free positions and documents
    for document in documents:
        size = len(document.ids) - 1
        if size <= 0:
            continue
        fitting = [row for row in rows if row[0] >= size]
        row = min(fitting, key=lambda row: row[0]) if fitting else [length, []]
        if not fitting:
            rows.append(row)
        row[0] -= size
        row[1].append(document)
        if not row[0] or len(rows) > _OPEN_ROWS:
            fullest = min(rows, key=lambda row: row[0])
            rows.remove(fullest)
            yield fullest[1]
    for _, packed in rows:
        yield packed
