"""Examples to learn from: texts, prompts with responses, and conversations, as rows of tokens."""

import itertools
import sys
import warnings
from typing import NamedTuple

import numpy as np

from keras_rgemma.finetuning.packing import pack
from keras_rgemma.model.preprocessor import is_dataset

PAIR = ("prompts", "responses")
_AT_A_TIME = 256  # examples that are tokenized together


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


def rows(preprocessor, examples, sequence_length=None):
    """Training data of examples.

    Args:
        preprocessor: `RGemmaCausalLMPreprocessor`.
        examples: what `RGemmaCausalLMPreprocessor` takes, and iterables of single examples.
        sequence_length: int, T; None for the preprocessor's.

    Returns:
        `(x, y, sample_weight)` as of the preprocessor, with a row for each example, or with
        `packing` as few rows as they fit into.

    Raises:
        TypeError: what is no example.
        ValueError: a malformed one, or no examples.
    """
    length = sequence_length or preprocessor.sequence_length
    found = list(documents(preprocessor, examples, length))
    if not found:
        raise ValueError("There is no example to learn from. Pass some text.")
    packed = pack(found, length) if preprocessor.packing else ([document] for document in found)
    numbered = [dict(enumerate(row, start=1)) for row in packed]
    return arrays(numbered, length, preprocessor.tokenizer.pad_token_id)


def documents(preprocessor, examples, length):
    """The `Document` of each example, cut to what a row holds; warns of those that were cut.

    A text is cut into several when they are packed.
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
                lost += not any(document.counts[1:])
                yield document
    if cut:
        warnings.warn(
            f"{cut} of {total} examples have more than sequence_length={length} tokens, and what "
            f"follows was cut; of {lost} of these nothing is left that the loss falls on, such as "
            "a response. Raise `sequence_length`, or shorten the prompts.",
            stacklevel=2,
        )


def arrays_of(preprocessor, data):
    """Examples in whatever form `fit` takes them, as arrays.

    Args:
        preprocessor: `RGemmaCausalLMPreprocessor`.
        data: examples as of `rows`; or a `tf.data` or grain dataset of batches of them.

    Returns:
        A pair of `(x, y, sample_weight)`, and the size of the batches of a dataset or None.
    """
    size = None
    if is_dataset(data):
        _check_ends(data)
        batches = data.as_numpy_iterator() if hasattr(data, "as_numpy_iterator") else iter(data)
        first = next(batches, ())
        values = next(iter(first.values())) if isinstance(first, dict) else first
        is_batch = not isinstance(values, (str, bytes)) and np.ndim(values) > 0
        size = len(values) if is_batch else None
        data = itertools.chain.from_iterable(map(singles, itertools.chain([first], batches)))
    return rows(preprocessor, data), size


def _check_ends(dataset):
    """Raises ValueError if a dataset is known to have no end."""
    if hasattr(dataset, "cardinality"):
        is_endless = dataset.cardinality() == -1  # tf.data.INFINITE_CARDINALITY
    else:
        is_endless = hasattr(dataset, "__len__") and len(dataset) >= sys.maxsize
    if is_endless:
        raise ValueError(
            "A dataset without an end cannot be read as a whole, as packing needs. Leave `repeat` "
            "out and pass `epochs`, or pack the examples first: `lm.preprocessor(examples)`."
        )


def _cut(preprocessor, document, length):
    """What a row holds of a document; a text ends with the end token all the same."""
    ids, counts = document.ids[: length + 1], document.counts[: length + 1]
    if document.is_text and preprocessor.add_end_token:
        ids = [*ids[:-1], preprocessor.tokenizer.end_token_id]
    return Document(ids, counts, document.is_text)


def singles(examples):
    """An iterator of single examples: str, pairs of prompt and response, or lists of turns.

    Raises:
        TypeError: what is no example.
        ValueError: prompts and responses of different numbers.
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
    """A text, or several in a list, an array or a tensor, as a list."""
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
    from keras_rgemma.generation.requests import checked_text

    if not isinstance(value, (str, bytes)):
        raise TypeError(
            "An example is a text, a dict of 'prompts' and 'responses', or a list of turns. "
            f"Received: {value!r}."
        )
    return checked_text(value, "An example")


def _batches(iterator, size):
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _tokenized(preprocessor, examples):
    """Documents; what is tokenized in the same way is tokenized together."""
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
            counts = [False] * len(prompt) + [True] * len(response)
            yield Document(prompt + response, counts, is_text=False)
        else:
            yield _conversation(tokenizer, example)


def _is_pair(example):
    return isinstance(example, tuple)


def _conversation(tokenizer, turns):
    """The tokens of a conversation as `Chat` has them; the loss falls on the model's answers."""
    from keras_rgemma.generation.chat import checked_history

    _, end_of_turn = tokenizer.control_token_ids()
    ids, counts = [tokenizer.start_token_id], [False]
    for place, turn in enumerate(checked_history(turns)):
        is_answer = turn["role"] == "model"
        # An answer is tokenized for itself, as it will be written.
        heading = "" if is_answer else turn["content"]
        answer = tokenizer.literal_token_ids(turn["content"].strip()) if is_answer else []
        said = tokenizer.turn_token_ids(turn["role"], heading, is_first=place == 0)
        ids += [*said, *answer, end_of_turn]
        counts += [False] * len(said) + [is_answer] * (len(answer) + 1)
    return Document(ids, counts, is_text=False)


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
