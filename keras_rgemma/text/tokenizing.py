"""Turns examples into documents of tokens that fit into a row, and counts those that are cut."""

import itertools
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from keras_rgemma.text.conversation import conversation
from keras_rgemma.text.documents import Document, cut, pieces
from keras_rgemma.text.examples import Conversation, Example, Pair, Tokens


class Counts:
    """Counts the examples of a pass over data, and those that a row has no room for.

    Attributes:
        total: int, all examples.
        cut: int, those that were cut; of them `texts` are texts, and `lost` have no token left
            that the loss falls on.
        first_lost: int, the number of the first example that is lost, or None.
    """

    total: int
    cut: int
    texts: int
    lost: int
    first_lost: int | None

    def __init__(self) -> None:
        self.total = self.cut = self.texts = self.lost = 0
        self.first_lost = None

    def count_cut(self, is_text: bool, is_lost: bool) -> None:
        """Counts that the last example was cut."""
        self.cut += 1
        self.texts += is_text
        self.lost += is_lost
        if is_lost and self.first_lost is None:
            self.first_lost = self.total - 1

    def warn(self, length: int, lost: str) -> None:
        """Warns of examples that were cut.

        Args:
            length: int, the `sequence_length`.
            lost: str, "keep" or "skip", the treatment of examples that are lost.
        """
        if not self.cut:
            return
        left = ""
        if self.lost:
            left = (
                f"; of {self.lost} of these nothing is left that the loss falls on, such as a "
                f"response{', and they were skipped' if lost == 'skip' else ''}"
            )
        warnings.warn(
            f"{self.cut} of {self.total} examples have more than sequence_length={length} tokens, "
            f"and what follows was cut{left}. Raise `sequence_length`, or shorten "
            f"{'the prompts' if self.lost else 'the examples'}.",
            stacklevel=2,
        )

    def check_lost(self, length: int) -> None:
        """Raises ValueError if an example is lost."""
        if self.lost:
            raise ValueError(
                f"sequence_length={length} cuts away the whole response of {self.lost} of "
                f"{self.total} examples; the first is example {self.first_lost}. Raise "
                "`sequence_length`, shorten the prompts, or leave such examples out with "
                "`preprocessor.lost_responses = 'skip'`."
            )


def documents(
    preprocessor: Any,
    examples: Iterable[Example],
    length: int,
    packing: bool = False,
    lost: str = "keep",
    counts: Counts | None = None,
    **kwargs: Any,
) -> Iterator[Document]:
    """Makes documents of examples, each cut to the length of a row.

    Args:
        preprocessor: `RGemmaCausalLMPreprocessor`.
        examples: iterable of examples, as of `keras_rgemma.text.examples`.
        length: int, tokens to predict in a row.
        packing: bool, whether a text that is too long is cut into several documents.
        lost: str, the treatment of examples of which nothing is left that the loss falls on:
            "keep", "skip", or "error", with which the first raises ValueError.
        counts: `Counts` that counts the examples.
        **kwargs: `weights`, an iterable with the weight of each example, and `at_a_time`, int, how
            many examples are read and tokenized together.
    """
    counts = Counts() if counts is None else counts
    for document in _tokenized(preprocessor, examples, **kwargs):
        counts.total += 1
        if len(document.ids) <= length + 1:
            yield document
        elif packing and document.is_text:
            yield from pieces(document, length)
        else:
            short = cut(document, length)
            is_lost = any(document.loss_mask[1:]) and not any(short.loss_mask[1:])
            counts.count_cut(document.is_text, is_lost)
            if is_lost and lost == "error":
                counts.check_lost(length)
            if not (is_lost and lost == "skip"):
                yield short


def _tokenized(
    preprocessor: Any,
    examples: Iterable[Example],
    weights: Iterable[float] | None = None,
    at_a_time: int = 256,
) -> Iterator[Document]:
    """Makes a whole document of each example."""
    examples = iter(examples)
    weights = itertools.repeat(1) if weights is None else weights
    batches = iter(lambda: list(itertools.islice(examples, at_a_time)), [])
    whole = itertools.chain.from_iterable(_batch(preprocessor, batch) for batch in batches)
    for document, weight in zip(whole, weights, strict=False):
        yield document._replace(weight=weight)


def _batch(preprocessor: Any, examples: Sequence[Example]) -> Iterator[Document]:
    """Makes documents of examples; tokenizes texts, prompts and responses in one call."""
    texts = []
    for example in examples:
        if isinstance(example, (str, Pair)):
            texts += [example] if isinstance(example, str) else example
    tokenizer = preprocessor.tokenizer
    ids = iter(tokenizer.token_id_rows(texts) if texts else [])
    start = [tokenizer.start_token_id] if preprocessor.add_start_token else []
    end = [tokenizer.end_token_id] if preprocessor.add_end_token else []
    for example in examples:
        if isinstance(example, str):
            row = [*start, *next(ids), *end]
            yield Document(row, [True] * len(row), is_text=True, end=end)
        elif isinstance(example, Pair):
            prompt, response = [*start, *next(ids)], [*next(ids), *end]
            loss_mask = [False] * len(prompt) + [True] * len(response)
            yield Document(prompt + response, loss_mask, is_text=False)
        elif isinstance(example, Conversation):
            yield conversation(tokenizer, *example)
        elif isinstance(example, Tokens):
            row = _without_pads(example.ids, tokenizer.pad_token_id)
            yield Document(row, [True] * len(row), is_text=True)


def _without_pads(ids: Sequence[int], pad: int) -> list[int]:
    """Leaves out the pads at both ends of a list of token ids."""
    places = [place for place, id in enumerate(ids) if id != pad]
    return [int(id) for id in ids[places[0] : places[-1] + 1]] if places else []
