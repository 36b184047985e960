"""Makes the fixed rows of tokens that `verify` shows to both implementations."""

import itertools
from typing import NamedTuple

import numpy as np

from keras_rgemma.model.tokenizer import RGemmaTokenizer

# Prose, figures, code, other scripts, white space: what tokenizers and models treat differently.
SENTENCES = (
    "The lighthouse keeper wrote that 1,024 ships had passed since the 3rd of March 1887.",
    "def mean(values):\n    return sum(values) / len(values)  # of at least one value\n",
    "Voilà : Straße, naïve, 東京, Москва, مرحبا, 🙂, and  two  spaces.",
    '{"name": "river", "length_km": 6650, "flows_to": ["sea", null, true]}',
    "What is the sum of 17 and 25? It is 42, because 17 + 25 = 42.",
    "She asked him whether the rain would stop; he said that it never had.",
    "1. Wash the rice.\n2. Boil it in twice as much water.\n3. Let it rest.\n",
    "E = mc^2, and so one gram is about 9e13 joules, or 25 GWh.",
)
PROMPTS = (
    "The capital of France is",
    "<start_of_turn>user\nWrite a line about the sea.<end_of_turn>\n<start_of_turn>model\n",
    "def fibonacci(n):\n",
)
SHORT = 48  # tokens of a short row
BEYOND = 64  # tokens of the long row after the first W
PADS = 11  # before the text of the left-padded row
# In the packed row: three documents, of which the second follows the pads of the first.
_PACKED = ((1, 17), (0, 2), (2, 9), (3, 20))
_EDGE = 16  # tokens compared at each end of a long row and on each side of its window
_STRIDE = 64  # between the tokens that are compared elsewhere


class Rows(NamedTuple):
    """Holds rows of tokens of one length.

    Attributes:
        names: tuple of B str.
        token_ids: int32 [B, T].
        padding_mask: int32 [B, T], as of `RGemmaBackbone`; no row ends with a pad.
        places: int32 [P], the tokens whose activations and logits are compared.
    """

    names: tuple[str, ...]
    token_ids: np.ndarray
    padding_mask: np.ndarray
    places: np.ndarray

    def positions(self) -> np.ndarray:
        """Returns the position of each token in its document, int32 [B, T].

        As DeepMind's code has no pads, a run of pads counts as a document of its own.
        """
        positions = np.zeros_like(self.token_ids)
        for t in range(1, positions.shape[1]):
            is_same = self.padding_mask[:, t] == self.padding_mask[:, t - 1]
            positions[:, t] = np.where(is_same, positions[:, t - 1] + 1, 0)
        return positions


class Material(NamedTuple):
    """Holds all that both implementations are shown.

    Attributes:
        batches: dict of "short" and "long" to `Rows`.
        prompts: list of lists of token ids, to be continued greedily.
        texts: tuple of str, to be tokenized by both; empty without a tokenizer.
        tokens: list of lists of ids, this package's tokens of these texts.
    """

    batches: dict[str, Rows]
    prompts: list[list[int]]
    texts: tuple[str, ...]
    tokens: list[list[int]]


def make_material(tokenizer: RGemmaTokenizer | None, vocabulary_size: int, window: int) -> Material:
    """Tokenizes the fixed texts and arranges them in rows.

    Args:
        tokenizer: `RGemmaTokenizer`, or None: the tokens are then fixed random numbers.
        vocabulary_size: int, V.
        window: int, W.

    Returns:
        `Material`.
    """
    length = max(window + BEYOND, SHORT + 1)
    if tokenizer is None:
        random = np.random.RandomState(0)
        stream = random.randint(0, vocabulary_size, length + 4 * SHORT).tolist()
        prompts = [stream[:12], stream[12:24], stream[24:36]]
        texts, tokens = (), []
    else:
        start = tokenizer.start_token_id
        texts = SENTENCES + PROMPTS
        tokens = [list(map(int, ids)) for ids in tokenizer.token_id_rows(list(texts))]
        sentences = tokens[: len(SENTENCES)]
        prompts = _of_one_length(tokens[len(SENTENCES) :], sentences[0], start)
        # Each round begins with another sentence, so that the long row is not periodic.
        rounds = (sentences[n % len(sentences) :] + sentences[:n] for n in itertools.count())
        flat = itertools.chain.from_iterable(itertools.chain.from_iterable(rounds))
        stream = [start, *itertools.islice(flat, length + 4 * SHORT)]
    long = np.array([stream[:length]], "int32")
    batches = {
        "short": _short_rows(stream[length:], stream[0]),
        "long": Rows(("long",), long, np.ones_like(long), _places(length, window)),
    }
    return Material(batches, prompts, texts, tokens)


def _of_one_length(prompts: list[list[int]], filler: list[int], start: int) -> list[list[int]]:
    """Prepends tokens to the shorter prompts: a program of the reference takes long to compile."""
    length = max(map(len, prompts))
    return [[start, *(filler * length + prompt)[-length:]] for prompt in prompts]


def _short_rows(stream: list[int], start: int) -> Rows:
    """Arranges tokens in a plain, a left-padded and a packed row."""
    ids = np.array(stream[: 3 * SHORT], "int32").reshape(3, SHORT)
    mask = np.ones((3, SHORT), "int32")
    mask[1, :PADS] = 0
    mask[2] = np.repeat(*zip(*_PACKED, strict=True))
    is_first = np.diff(mask, axis=1, prepend=0) != 0
    ids = np.where(is_first, start, ids)  # each document begins as texts do
    names = ("short", "left-padded", "packed")
    return Rows(
        names, np.where(mask > 0, ids, 0).astype("int32"), mask, np.arange(SHORT, dtype="int32")
    )


def _places(length: int, window: int) -> np.ndarray:
    """Chooses the tokens of a long row that are compared: its ends, the window's edge, others."""
    edges = [(0, _EDGE), (window - _EDGE, window + _EDGE), (length - _EDGE, length)]
    chosen = {t for first, last in edges for t in range(max(0, first), min(last, length))}
    return np.array(sorted(chosen | set(range(0, length, _STRIDE))), "int32")
