"""Turns examples (texts, prompts with responses, conversations) into rows of tokens."""

import itertools
import warnings

import numpy as np

from keras_rgemma.shapes import check_text
from keras_rgemma.text.conversation import conversation
from keras_rgemma.text.documents import Document, arrays, pieces
from keras_rgemma.text.packing import pack

PAIR = ("prompts", "responses")
_AT_A_TIME = 256  # examples that are tokenized together


def rows(preprocessor, examples, sequence_length=None):
    """Makes training data of examples.

    Args:
        preprocessor: `RGemmaCausalLMPreprocessor`.
        examples: what `RGemmaCausalLMPreprocessor` takes, and iterables of single examples.
        sequence_length: int, T; None for the preprocessor's.

    Returns:
        `(x, y, sample_weight)` as of the preprocessor, with a row for each example or, with
        `packing`, as few rows as the examples fit into.

    Raises:
        TypeError: an element is no example.
        ValueError: an example is malformed, or there is none.
    """
    length = sequence_length or preprocessor.sequence_length
    tokenized = list(documents(preprocessor, examples, length))
    if not tokenized:
        raise ValueError("There is no example to learn from. Pass some text.")
    packed = pack(tokenized, length) if preprocessor.packing else ([x] for x in tokenized)
    numbered = [dict(enumerate(row, start=1)) for row in packed]
    return arrays(numbered, length, preprocessor.tokenizer.pad_token_id)


def documents(preprocessor, examples, length):
    """Makes a `Document` of each example, cut to the length of a row; warns of examples cut.

    With packing, a text is cut into several documents and loses nothing.
    """
    total = cut = lost = 0
    for batch in _batches(singles(examples), _AT_A_TIME):
        for document in _tokenized(preprocessor, batch):
            total += 1
            if len(document.ids) <= length + 1:
                yield document
            elif preprocessor.packing and document.is_text:
                yield from pieces(document, length)
            else:
                document = _cut(preprocessor, document, length)
                cut += 1
                lost += not any(document.loss_mask[1:])
                yield document
    if cut:
        warnings.warn(
            f"{cut} of {total} examples have more than sequence_length={length} tokens, and what "
            f"follows was cut; of {lost} of these nothing is left that the loss falls on, such as "
            "a response. Raise `sequence_length`, or shorten the prompts.",
            stacklevel=2,
        )


def _cut(preprocessor, document, length):
    """Cuts a document to the length of a row; a text keeps its end token."""
    ids, loss_mask = document.ids[: length + 1], document.loss_mask[: length + 1]
    if document.is_text and preprocessor.add_end_token:
        ids = [*ids[:-1], preprocessor.tokenizer.end_token_id]
    return Document(ids, loss_mask, document.is_text)


def singles(examples):
    """Iterates over single examples: str, pairs of prompt and response, or lists of turns.

    Raises:
        TypeError: an element is no example.
        ValueError: there are more prompts than responses, or fewer.
    """
    if isinstance(examples, (str, bytes)):
        examples = [examples]
    if isinstance(examples, dict):
        _check_keys(examples)
        prompts, responses = (_column(examples[key]) for key in PAIR)
        if len(prompts) != len(responses):
            raise ValueError(f"There are {len(prompts)} prompts and {len(responses)} responses.")
        yield from zip(map(_text, prompts), map(_text, responses), strict=True)
        return
    for example in _column(examples) if hasattr(examples, "__array__") else examples:
        if isinstance(example, tuple) and len(example) == 2:
            yield tuple(map(_text, example))
        elif isinstance(example, dict):
            _check_keys(example)
            yield tuple(_text(example[key]) for key in PAIR)
        elif isinstance(example, (list, tuple)):
            if not example or not all(isinstance(turn, dict) for turn in example):
                raise TypeError(
                    "A list among the examples is a conversation, of dicts with 'role' and "
                    f"'content'. Received: {example!r}. Pass texts one by one, and a prompt with "
                    "its response as a dict or a pair."
                )
            yield list(example)
        else:
            yield _text(example)


def _column(texts):
    """Returns a text, or several in a list, an array or a tensor, as a list."""
    if isinstance(texts, (str, bytes)):
        return [texts]
    return np.asarray(texts).tolist() if hasattr(texts, "__array__") else list(texts)


def _check_keys(example):
    if set(example) != set(PAIR):
        raise ValueError(
            "An example that is a dict has 'prompts' and 'responses'; a conversation is a list of "
            f"dicts with 'role' and 'content'. Received a dict with {sorted(map(str, example))}."
        )


def _text(value):
    if not isinstance(value, (str, bytes)):
        raise TypeError(
            "An example is a text, a dict of 'prompts' and 'responses', or a list of turns. "
            f"Received: {value!r}."
        )
    return check_text(value, "An example")


def _batches(iterator, size):
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _tokenized(preprocessor, examples):
    """Makes documents of examples; tokenizes texts, prompts and responses in one call."""
    texts = []
    for example in examples:
        texts += [example] if isinstance(example, str) else example if _is_pair(example) else []
    tokenizer = preprocessor.tokenizer
    ids = iter(tokenizer.token_id_rows(texts) if texts else [])
    start = [tokenizer.start_token_id] if preprocessor.add_start_token else []
    end = [tokenizer.end_token_id] if preprocessor.add_end_token else []
    for example in examples:
        if isinstance(example, str):
            row = [*start, *next(ids), *end]
            yield Document(row, [True] * len(row), is_text=True)
        elif _is_pair(example):
            prompt, response = [*start, *next(ids)], [*next(ids), *end]
            loss_mask = [False] * len(prompt) + [True] * len(response)
            yield Document(prompt + response, loss_mask, is_text=False)
        else:
            yield conversation(tokenizer, example)


def _is_pair(example):
    return isinstance(example, tuple)


def check_no_labels(*labels):
    """Raises ValueError if labels or weights (not None) were passed beside examples."""
    if any(label is not None for label in labels):
        raise ValueError(
            "Labels and weights come from the examples. Pass `x` alone; a prompt with its response "
            "as a dict of 'prompts' and 'responses'; or, to weigh examples, `token_ids`, labels "
            "and weights, as the preprocessor returns them."
        )
