"""Decodes tokens to text as they come, in whole characters and up to a stop string."""

from collections.abc import Callable, Sequence

import numpy as np

_INCOMPLETE = "\ufffd"  # the bytes of half a character are decoded to this


class TextDeltas:
    """Decodes the new tokens of one row to deltas, the text that each call adds.

    The deltas and the result of `rest`, joined, are the text of all tokens before the first stop
    string.

    Args:
        decode: function of a list of token ids that returns their text.
        stop: sequence of str, none of them empty.

    Attributes:
        stopped: bool, whether a stop string was found.
    """

    stopped: bool

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str] = ()) -> None:
        self.stopped = False
        self._decode = decode
        self._stop = tuple(stop)
        self._last, self._waiting = [], []  # tokens whose text is out, and those after them
        self._held = ""  # text that may be the beginning of a stop string

    def extend(self, token_ids: Sequence[int] | np.ndarray) -> tuple[str, int]:
        """Decodes more tokens of the row.

        Args:
            token_ids: sequence of ints.

        Returns:
            A pair: the delta, str, often empty, which later tokens cannot change; and the number
            of tokens up to a stop string, or of all tokens if there is none.
        """
        delta = ""
        for count, token_id in enumerate(token_ids, start=1):
            delta += self._add(int(token_id))
            if self.stopped:
                return delta, count
        return delta, len(token_ids)

    def _add(self, token_id: int) -> str:
        self._waiting.append(token_id)
        text = self._text()
        if text.endswith(_INCOMPLETE):
            return ""
        # Tokenizers may decode the first token of a text differently, hence the last tokens.
        self._last, self._waiting = self._waiting, []
        return self._certain(text)

    def rest(self) -> str:
        """Returns the text that was held back, str, when no more tokens come."""
        text = self._certain(self._text()) + self._held
        self._last, self._waiting, self._held = [], [], ""
        return text

    def _text(self) -> str:
        """Decodes the tokens whose text is not out yet."""
        before = self._decode(self._last)
        return self._decode(self._last + self._waiting)[len(before) :]

    def _certain(self, text: str) -> str:
        """Returns the part of new text that no stop string can take back, and holds the rest."""
        text = self._held + text
        starts = [start for start in map(text.find, self._stop) if start >= 0]
        if starts:
            self.stopped, self._held = True, ""
            return text[: min(starts)]
        held = _overlap(text, self._stop)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: tuple[str, ...]) -> int:
    """Returns the length of the longest end of a text that is the beginning of a stop string."""
    longest = max((len(string) - 1 for string in stop), default=0)
    for size in range(min(longest, len(text)), 0, -1):
        if any(string.startswith(text[-size:]) for string in stop):
            return size
    return 0
