"""What a user asks of `generate`: which prompts, and how many tokens."""

import dataclasses

import numpy as np

from keras_rgemma.generation.programs import pad_right
from keras_rgemma.shapes import as_array, check_one_document, check_token_ids

# The buffer of new tokens is made before the first one.
MOST_NEW_TOKENS = 2**22


@dataclasses.dataclass(frozen=True)
class TokenBudget:
    """How many new tokens rows may get.

    Args:
        max_length: int or None, tokens of a row in all.
        max_new_tokens: int or None.
        sequence_length: int or None, the default for `max_length`.

    Raises:
        ValueError: both limits, or one that is no whole number or negative.
    """

    max_length: int | None = None
    max_new_tokens: int | None = None
    sequence_length: int | None = None

    def __post_init__(self):
        for name in ("max_length", "max_new_tokens"):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
                raise ValueError(
                    f"`{name}` must be a whole number of tokens, at least 0. Received: {value!r}."
                )
        if self.max_length is not None and self.max_new_tokens is not None:
            raise ValueError(
                "Pass `max_length` (tokens in all) or `max_new_tokens`, not both. Received: "
                f"max_length={self.max_length}, max_new_tokens={self.max_new_tokens}."
            )

    def of(self, lengths, default_length=None):
        """The new tokens for prompts of these lengths.

        Args:
            lengths: list of ints.
            default_length: int or None, total tokens when no limit was given.

        Raises:
            ValueError: a prompt is longer than `max_length`, or the limit is out of reach.
        """
        budgets = self._budgets(lengths, default_length)
        if max(budgets) > MOST_NEW_TOKENS:
            raise ValueError(
                f"One call writes at most {MOST_NEW_TOKENS} new tokens a row. Received a limit of "
                f"{max(budgets)}. Lower it, and call again with the text so far for more."
            )
        return budgets

    def _budgets(self, lengths, default_length):
        if self.max_new_tokens is not None:
            return [int(self.max_new_tokens)] * len(lengths)
        total = default_length if self.max_length is None else self.max_length
        if total is None:
            usual = self.sequence_length
            return [usual - n if n < usual else usual for n in lengths]
        for row, length in enumerate(lengths):
            if length > total:
                raise ValueError(
                    f"`max_length`={total} is shorter than prompt {row}, which has {length} "
                    f"tokens. Pass at least {length}, or bound the new tokens alone with "
                    "`max_new_tokens`. Prompts are never cut."
                )
        return [int(total) - length for length in lengths]


def read_batches(inputs):
    """The batches in what was given to `generate`.

    Args:
        inputs: str, sequence or array of str, dict of arrays, or `tf.data.Dataset` of such.

    Returns:
        A list of batches, each a list of str or a dict of arrays, and whether the input was a
        single str.

    Raises:
        ValueError: there is nothing in it.
        TypeError: it is none of these.
    """
    if hasattr(inputs, "as_numpy_iterator"):
        batches = [_read_batch(batch)[0] for batch in inputs.as_numpy_iterator()]
        is_scalar = False
    else:
        batch, is_scalar = _read_batch(inputs)
        batches = [batch]
    if not batches or not all(batches):
        raise ValueError(
            f"`generate` needs at least one prompt. Received: {inputs!r}. For text from nothing "
            "but the start token, pass an empty string: ''."
        )
    return batches, is_scalar


def _read_batch(inputs):
    if isinstance(inputs, dict):
        # Left out is the same as None.
        return {k: as_array(v, k) for k, v in inputs.items() if v is not None}, False
    if isinstance(inputs, (str, bytes)):
        return [checked_text(inputs)], True
    if hasattr(inputs, "numpy"):
        inputs = inputs.numpy()
        if isinstance(inputs, bytes):
            return [checked_text(inputs)], True
    if isinstance(inputs, np.ndarray):
        inputs = inputs.tolist() if inputs.ndim else [inputs.item()]
    if not isinstance(inputs, (list, tuple)):
        raise TypeError(
            "Prompts are a str, a list of str, a dict of arrays or a tf.data.Dataset. "
            f"Received: {inputs!r} of type {type(inputs).__name__}."
        )
    return [checked_text(text) for text in inputs], False


def checked_text(value, what="A prompt"):
    """A str that a tokenizer can take, from a str or bytes.

    Args:
        value: str or bytes.
        what: str, what errors call it.

    Raises:
        ValueError: it is no valid Unicode.
        TypeError: it is neither.
    """
    try:
        if isinstance(value, bytes):
            return value.decode("utf-8")
        if isinstance(value, str):
            value.encode("utf-8")
    except UnicodeError as error:
        raise ValueError(
            f"{what} must be valid Unicode. Received: {value!r} ({error}). Replace what is not, "
            "for bytes with `.decode('utf-8', 'replace')`."
        ) from error
    if not isinstance(value, str):
        raise TypeError(
            f"{what} must be a str. Received: {value!r} of type {type(value).__name__}. Token ids "
            "go in a dict: {'token_ids': ..., 'padding_mask': ...}."
        )
    return str(value)


def rows_of(token_ids, padding_mask, may_be_empty=False):
    """The tokens of each row without its pads.

    Args:
        token_ids: int32 [B, T].
        padding_mask: int32 [B, T].
        may_be_empty: bool, whether a row may hold no token, as behind a state.

    Raises:
        ValueError: a row holds no token, or several documents.
    """
    check_one_document(padding_mask, may_be_empty)
    return [ids[mask > 0] for ids, mask in zip(token_ids, padding_mask, strict=True)]


def read_stop_token_ids(stop_token_ids, preprocessor, vocabulary_size):
    """The ids of tokens that end a text, as a tuple of ints.

    Args:
        stop_token_ids: "auto", None, or a sequence of ids.
        preprocessor: whose tokenizer knows those of "auto", or None.
        vocabulary_size: int.

    Raises:
        ValueError: it is none of these, one is outside of the vocabulary, or "auto" without a
            preprocessor.
    """
    if stop_token_ids is None:
        return ()
    if isinstance(stop_token_ids, str) and stop_token_ids == "auto":
        if preprocessor is None:
            raise ValueError(
                "`stop_token_ids='auto'` needs a preprocessor, whose tokenizer knows what ends "
                "a text. Pass a tuple of token ids, or None to use up the limit."
            )
        tokenizer = preprocessor.tokenizer
        ends = (tokenizer.end_token_id, getattr(tokenizer, "end_token2_id", None))
        return tuple(id for id in ends if id is not None)
    ids = as_array(stop_token_ids, "stop_token_ids")
    if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
        raise ValueError(
            "`stop_token_ids` must be 'auto', None or a sequence of token ids, such as (1, 107). "
            f"Received: {stop_token_ids!r}."
        )
    check_token_ids(ids[None], vocabulary_size, "stop_token_ids")
    return tuple(int(id) for id in ids)


def read_stop(stop, has_text):
    """The strings that end a text, as a tuple.

    Args:
        stop: str, sequence of str, or None.
        has_text: bool, whether the model has a preprocessor to tell the text of tokens.

    Raises:
        ValueError: an empty string, something else than strings, or no preprocessor.
    """
    strings = [stop] if isinstance(stop, str) else [] if stop is None else list(stop)
    if not all(isinstance(string, str) and string for string in strings):
        raise ValueError(
            "`stop` must be a str or a sequence of str, none of them empty, such as ['\\n\\n']. "
            f"Received: {stop!r}."
        )
    if strings and not has_text:
        raise ValueError(
            "`stop` needs a preprocessor, which tells the text of tokens. Received: "
            f"{stop!r}. Attach one, or pass `stop_token_ids`."
        )
    return tuple(strings)


def arrays_of(prompts, new, width):
    """The dict of arrays that holds prompts and new tokens, at least `width` columns wide."""
    rows = [np.array([*prompt, *row], "int32") for prompt, row in zip(prompts, new, strict=True)]
    token_ids, mask = pad_right(rows, max(width, *(len(row) for row in rows)))
    return {"token_ids": token_ids, "padding_mask": mask.astype(bool)}


def concatenated(outputs):
    """Dicts of arrays, row after row, padded to the widest."""
    width = max(output["token_ids"].shape[1] for output in outputs)
    return {
        key: np.concatenate(
            [np.pad(x[key], ((0, 0), (0, width - x[key].shape[1]))) for x in outputs]
        )
        for key in outputs[0]
    }
