"""Makes batches of rows from a source, lazily and in its order."""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from keras_rgemma.shapes import check_token_ids
from keras_rgemma.text import sources
from keras_rgemma.text.examples import Example, no_example, read_element, read_examples
from keras_rgemma.text.forms import is_row
from keras_rgemma.text.rows import NONE_TO_LEARN, in_rows, to_arrays
from keras_rgemma.text.tokenizing import Counts, documents

BATCH_SIZE = 32  # as in Keras
_LOOKED_AT = 2  # batches that Keras looks at before it begins


class Batches:
    """Iterates over batches of rows made from a source.

    A pass that nobody has read beyond its first two batches is begun again, so that they can be
    looked at. A source that cannot begin again goes on where it was.

    Args:
        preprocessor: `RGemmaCausalLMPreprocessor`.
        data: the source, see `keras_rgemma.text.sources`.
        batch_size: int, or None for the batches of the source.
        packing: bool, whether several examples share a row.
        lost: str, the treatment of examples of which nothing is left that the loss falls on:
            "keep", "skip" or "error".
        is_kept: bool, whether the batches of a source that cannot begin again are kept in memory
            for further passes.
        default: int, the batch size of single examples if `batch_size` is None; 32 if it is None.
        vocabulary_size: int, the token ids that the model knows; None for any.

    Raises:
        ValueError: there is nothing to learn from in the source.
    """

    first: list[tuple[Any, ...]]

    def __init__(
        self,
        preprocessor: Any,
        data: Any,
        batch_size: int | None,
        packing: bool,
        lost: str,
        is_kept: bool = False,
        default: int | None = None,
        vocabulary_size: int | None = None,
    ) -> None:
        self._preprocessor = preprocessor
        self._vocabulary_size = vocabulary_size
        self._data = data
        self._batch_size = batch_size
        self._default = batch_size or default or BATCH_SIZE
        self._packing = packing
        self._lost = lost
        self._length = preprocessor.sequence_length
        self._kept = [] if is_kept and not sources.begins_again(data) else None
        self._is_complete = False
        self._counts = []
        self._begin()
        if not self.first:
            for counts in self._counts:
                counts.check_lost(self._length)
            raise ValueError(NONE_TO_LEARN)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        if self._is_read:
            self._begin()
        yield from self.first
        self._is_read = True
        for batch in self._rest:
            if self._kept is not None and not self._is_complete:
                self._kept.append(batch)
            yield batch
        self._is_complete = True

    @property
    def num_batches(self) -> int | None:
        """The number of batches in a pass, or None if it is not known; skipped examples count."""
        number = sources.count(self._data)
        if number is None or number == math.inf or (self._packing and not self._is_prepared):
            return None
        if self._is_batch and self._batch_size is not None:
            return None
        return number if self._is_batch else math.ceil(number / self._default)

    def forget(self) -> None:
        """Begins the next pass from the beginning, for a source that has changed its order."""
        self._is_read = self._is_read or sources.begins_again(self._data)

    def warn(self) -> None:
        """Warns of the examples that were cut in the longest pass."""
        if self._counts:
            longest = max(self._counts, key=lambda counts: counts.total)
            longest.warn(self._length, self._lost)

    def _begin(self) -> None:
        """Begins a pass, and reads its first batches."""
        if self._kept is not None and self._is_complete:
            self._rest = iter(self._kept)
        else:
            self._rest = map(self._checked, self._read())
        self.first = list(itertools.islice(self._rest, _LOOKED_AT))
        if self._kept is not None and not self._is_complete:
            self._kept += self.first
        self._is_read = False

    def _read(self) -> Iterator[tuple[Any, ...]]:
        elements = sources.elements(self._data)
        first = list(itertools.islice(elements, 1))
        if not first:
            return
        elements = itertools.chain(first, elements)
        (first,) = first
        self._is_prepared = sources.is_prepared(first)
        if self._is_prepared:
            yield from self._prepared(first, elements)
        else:
            yield from self._tokenized(elements)

    def _checked(self, batch: tuple[Any, ...]) -> tuple[Any, ...]:
        if self._vocabulary_size is not None:
            check_token_ids(batch[0]["token_ids"], self._vocabulary_size)
        return batch

    def _tokenized(self, elements: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
        """Makes batches of elements with examples."""
        counts = Counts()
        self._counts.append(counts)
        settings = {"packing": self._packing, "lost": self._lost, "counts": counts}
        read = _read_elements(elements, self._preprocessor.columns)
        examples, self._is_batch = next(read)
        read = itertools.chain([examples], (examples for examples, _ in read))
        pad = self._preprocessor.tokenizer.pad_token_id
        if self._is_batch and not self._packing and self._batch_size is None:
            for examples in read:
                whole = documents(self._preprocessor, examples, self._length, **settings)
                if rows := list(in_rows(whole, self._length, packing=False)):
                    yield to_arrays(rows, self._length, pad, packing=False)
            return
        is_own = self._is_batch and self._batch_size is None
        size = len(examples) if is_own else self._default
        read = itertools.chain.from_iterable(read)
        whole = documents(self._preprocessor, read, self._length, at_a_time=size, **settings)
        rows = in_rows(whole, self._length, self._packing)
        while batch := list(itertools.islice(rows, size)):
            yield to_arrays(batch, self._length, pad, self._packing)

    def _prepared(self, first: Any, elements: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
        """Makes batches of elements with rows, which may be batches themselves."""
        x, *_ = _parts(first)
        self._is_batch = np.ndim(x["token_ids"]) > 1
        parts = map(_parts, elements)
        if self._is_batch and self._batch_size is None:
            yield from map(complete, parts)
            return
        rows = itertools.chain.from_iterable(map(_rows, parts)) if self._is_batch else parts
        while batch := list(itertools.islice(rows, self._default)):
            yield complete(_stacked(batch))


def read_all(data: Any, columns: Mapping[str, str]) -> tuple[list[Example], bool]:
    """Reads all examples of data, in memory or from a source.

    Args:
        data: data as of `keras_rgemma.text.examples.read_examples`, or a source.
        columns: dict, see `keras_rgemma.text.examples.check_columns`.

    Returns:
        A list of examples, and whether the data hold several (False for one without a list).

    Raises:
        ValueError: the source is known to have no end.
    """
    if not sources.is_source(data):
        return read_examples(data, columns)
    check_ends(data, "All of them are read here")
    read = _read_elements(sources.elements(data), columns)
    return [example for examples, _ in read for example in examples], True


def check_ends(data: Any, reason: str) -> None:
    """Raises ValueError, with a reason, if a source is known to have no end."""
    if sources.count(data) == math.inf:
        raise ValueError(
            f"These data have no end. {reason}. Leave `repeat` out and pass `epochs`, or say how "
            "many batches an epoch has with `steps_per_epoch` (`steps` in `evaluate`)."
        )


def _read_elements(
    elements: Iterable[Any], columns: Mapping[str, str]
) -> Iterator[tuple[list[Example], bool]]:
    """Yields lists of examples, and whether they were a batch."""
    count = 0
    for element in elements:
        if sources.is_prepared(element):
            raise no_example(element, count, "Rows of tokens stand among examples. ")
        examples, is_batch = read_element(element, columns, count)
        count += len(examples)
        yield examples, is_batch


def _parts(element: Any) -> tuple[Any, ...]:
    """Returns the parts of a prepared element: x as a dict of arrays, and labels and weights."""
    if is_row(element):
        element = (element,)
    x, *rest = element
    parts = {key: _array(value) for key, value in x.items()}, *map(_array, rest)
    return tuple(part for part in parts if part is not None)


def _array(value: Any) -> np.ndarray | None:
    if hasattr(value, "detach"):  # a tensor of torch, on any device
        value = value.detach().cpu()
    return None if value is None else np.asarray(value)


def _rows(parts: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    x, *rest = parts
    for i in range(len(x["token_ids"])):
        yield {key: value[i] for key, value in x.items()}, *(part[i] for part in rest)


def _stacked(rows: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    x = {key: np.stack([row[0][key] for row in rows]) for key in rows[0][0]}
    return x, *(np.stack(column) for column in list(zip(*rows, strict=True))[1:])


def complete(parts: tuple[Any, ...]) -> tuple[Any, ...]:
    """Adds labels, the next tokens, and their weights to rows without.

    Args:
        parts: tuple of a dict of `token_ids` and `padding_mask` [B, T], and perhaps labels [B, T]
            and weights.
    """
    if len(parts) > 1:
        return parts
    (x,) = parts
    ids = np.asarray(x["token_ids"])
    mask = np.asarray(x.get("padding_mask", np.ones_like(ids)))
    y, sample_weight = np.zeros_like(ids), np.zeros(ids.shape, "int32")
    y[:, :-1] = ids[:, 1:]
    sample_weight[:, :-1] = (mask[:, 1:] > 0) & (mask[:, 1:] == mask[:, :-1])
    return x, y, sample_weight
