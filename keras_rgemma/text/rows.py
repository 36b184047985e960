"""Makes rows of tokens, labels and weights of examples in memory."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from keras_rgemma.text.documents import Document, Rows, arrays
from keras_rgemma.text.examples import Example
from keras_rgemma.text.forms import as_list
from keras_rgemma.text.packing import pack
from keras_rgemma.text.tokenizing import Counts, documents

NONE_TO_LEARN = "There is no example to learn from. Pass some text."


def make_rows(
    preprocessor: Any,
    examples: Sequence[Example],
    length: int,
    packing: bool,
    lost: str = "keep",
    weights: Any = None,
    warns: bool = True,
) -> Rows:
    """Makes training data of examples.

    Args:
        preprocessor: `RGemmaCausalLMPreprocessor`.
        examples: list of examples, as of `keras_rgemma.text.examples`.
        length: int, T, the `sequence_length`.
        packing: bool, whether several examples share a row.
        lost: str, the treatment of examples of which nothing is left that the loss falls on:
            "keep", "skip" or "error".
        weights: array or list with a weight for each example, or None.
        warns: bool, whether a warning says that texts were cut; it does for other examples.

    Returns:
        `(x, y, sample_weight)` as of the preprocessor, with a row for each example or, with
        `packing`, as few rows as the examples fit into.

    Raises:
        ValueError: there is no example; examples are lost, with "error"; or there are more weights
            than examples, or fewer.
    """
    counts = Counts()
    settings = {"packing": packing, "lost": "keep" if lost == "error" else lost, "counts": counts}
    settings["weights"] = _check_weights(weights, len(examples))
    tokenized = list(documents(preprocessor, examples, length, **settings))
    if lost == "error":
        counts.check_lost(length)
    if not tokenized:
        raise ValueError(NONE_TO_LEARN)
    if warns or counts.cut > counts.texts:
        counts.warn(length, lost)
    packed = in_rows(tokenized, length, packing)
    return to_arrays(packed, length, preprocessor.tokenizer.pad_token_id, packing)


def in_rows(documents: Iterable[Document], length: int, packing: bool) -> Iterator[list[Document]]:
    """Iterates over rows, lists of documents: one each, or several with `packing`."""
    return pack(documents, length) if packing else ([document] for document in documents)


def to_arrays(packed: Iterable[list[Document]], length: int, pad: int, packing: bool) -> Rows:
    """Makes `(x, y, sample_weight)` of rows as of `in_rows`; see `arrays`."""
    rows = [dict(enumerate(row, start=1)) for row in packed]
    return arrays(rows, length, pad, shows_end=not packing)


def _check_weights(weights: Any, count: int) -> list[float] | None:
    """Lists the weights of examples as floats."""
    if weights is None:
        return None
    weights = np.asarray(as_list(weights))
    if weights.shape != (count,) or weights.dtype.kind not in "fiub":
        raise ValueError(
            f"`sample_weight` holds a number for each of the {count} examples. Received an array "
            f"of shape {weights.shape} and dtype {weights.dtype}. For a weight on each token, pass "
            "`token_ids`, labels and weights, as the preprocessor returns them."
        )
    if not np.isfinite(weights).all():
        index = int(np.flatnonzero(~np.isfinite(weights))[0])
        raise ValueError(
            f"`sample_weight` holds {weights[index]} for example {index}, and every weight after a "
            "step with it would be NaN. Pass a finite number for each example."
        )
    return weights.astype("float32").tolist()
