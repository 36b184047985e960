"""The text of tokens as they come: never half a character, never past a stop string."""

_INCOMPLETE = "\ufffd"  # what the bytes of half a character are decoded to


class TextDeltas:
    """The new text of one row, piece by piece.

    The pieces joined, with what `rest` returns, are the text of all tokens up to the first stop
    string, which is no part of it.

    Args:
        decode: function of a list of token ids that returns their text.
        stop: sequence of str, none of them empty.

    Attributes:
        stopped: bool, whether a stop string was found.
    """

    def __init__(self, decode, stop=()):
        self.stopped = False
        self._decode = decode
        self._stop = tuple(stop)
        self._last, self._waiting = [], []  # tokens whose text is out, and those after them
        self._held = ""  # text that may be the beginning of a stop string

    def extend(self, token_ids):
        """More tokens.

        Args:
            token_ids: sequence of ints.

        Returns:
            The text that is certain now, str, often empty; and how many of the tokens it took to
            find a stop string, or their number.
        """
        said = ""
        for count, token_id in enumerate(token_ids, start=1):
            said += self._add(int(token_id))
            if self.stopped:
                return said, count
        return said, len(token_ids)

    def _add(self, token_id):
        self._waiting.append(token_id)
        text = self._text()
        if text.endswith(_INCOMPLETE):
            return ""
        # A tokenizer may treat the beginning of a text in its own way, hence the last tokens.
        self._last, self._waiting = self._waiting, []
        return self._certain(text)

    def rest(self):
        """What was held back, str, when no more tokens come."""
        text = self._certain(self._text()) + self._held
        self._last, self._waiting, self._held = [], [], ""
        return text

    def _text(self):
        before = self._decode(self._last)
        return self._decode(self._last + self._waiting)[len(before) :]

    def _certain(self, text):
        text = self._held + text
        found = [place for place in map(text.find, self._stop) if place >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        held = _beginning_of_a_stop(text, self._stop)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _beginning_of_a_stop(text, stop):
    """The length of the longest end of a text that a stop string begins with."""
    longest = max((len(string) - 1 for string in stop), default=0)
    for size in range(min(longest, len(text)), 0, -1):
        if any(string.startswith(text[-size:]) for string in stop):
            return size
    return 0
