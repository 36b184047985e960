"""Packing: several documents in a row, so that few positions are pads."""

_OPEN_ROWS = 64  # that wait for documents to fill them


def pack(documents, length):
    """Puts documents into rows, each where it leaves the least room.

    Args:
        documents: iterable of objects with `ids`, of which all but the last take up a position;
            none takes up more than `length`.
        length: int, positions of a row.

    Yields:
        Lists of documents, one a row; a row is given when it is full, or the fullest of many.
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
