"""docs/errors.md has every message that a user can meet, by its first words, and no other."""

import collections
import pathlib
import re

import pytest

import error_messages
from backend_independent import backend_independent

pytestmark = backend_independent

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "errors.md"
# Beginnings of messages that no user meets, by their file, and why.
INTERNAL = {
    ("distribution/compiling.py", "Compiling …"): "a line of progress",
    ("distribution/compiling.py", "Compiled …"): "a line of progress",
    ("distribution/compiling.py", "_ERRORS"): "the error of another process, which is on the page",
    ("evaluation/evaluate.py", "_Unavailable"): "the reason of a row, in the table",
    ("evaluation/evaluate.py", "[…] …, done before"): "a line of progress",
    ("evaluation/evaluate.py", "f'[{place}/"): "a line of progress",
    ("evaluation/verify/__init__.py", "words"): "a line of progress",
    ("evaluation/verify/processes.py", "_ERRORS"): "the error of another process, which is there",
    ("interrupts.py", "KeyboardInterrupt"): "Ctrl-C itself",
    ("keras_internals/steps.py", "StopIteration"): "the protocol of iterators",
    ("model/examples.py", "adapter.error"): "the error of the user's own source, as it was",
    ("model/tokenizer.py", "end_token2_id"): "the protocol of attributes: `hasattr` asks for it",
    ("state/file.py", "their numbers of rows"): "behind `its parts do not make a state`",
    ("state/file.py", "unknown: …"): "behind `its parts do not make a state`",
    ("text/literal_space.py", "AttributeError(name)"): "the protocol of attributes",
    ("text/quiet_model.py", "A field is longer"): "caught in the same file",
    ("text/quiet_model.py", "There is no field"): "caught in the same file",
}
# Several lines of code that share an entry must agree in as many words of their messages.
_AGREE = 8


def entries(text):
    """The first words that a page lists, a list of str: the code before the colon of an item."""
    spans = r"(`+)(?: (?=`)|(?!`))((?:(?!\1).|(?<=\w)`(?!`)|`(?=\w))+?)(?:(?<=`) )?\1(?!`)"
    found = []
    for item in re.findall(r"^- (.*?)(?=^- |^\n|\Z)", text, re.MULTILINE | re.DOTALL):
        place = 0
        while match := re.compile(spans, re.DOTALL).match(item, place):
            found.append(" ".join(match[2].split()))
            place = match.end()
            if not (comma := re.compile(r",\s+").match(item, place)):
                break
            place = comma.end()
        assert item[place : place + 1] == ":", f"No colon behind the first words: {item[:60]!r}"
    return found


def is_internal(message):
    file = message.where.partition(":")[0]
    begins = (message.text or message.code, message.code)
    return any(file == x and any(y.startswith(start) for y in begins) for x, start in INTERNAL)


def owners(messages, listed):
    """A dict of each entry to the messages whose longest beginning it is; None to the others."""
    found = collections.defaultdict(list)
    for message in messages:
        begins = [x for x in listed if message.text and message.text.startswith(x)]
        found[max(begins, key=len, default=None)].append(message)
    return found


@pytest.fixture(scope="module")
def messages():
    return error_messages.Package().messages()


@pytest.fixture(scope="module")
def listed():
    return entries(PAGE.read_text(encoding="utf-8"))


def test_every_message_is_on_the_page(messages, listed):
    assert len(messages) > 300
    public = [x for x in messages if not is_internal(x)]
    missing = owners(public, listed)[None]
    lines = [f"- `{x.text or x.code}`:  (keras_rgemma/{x.where})" for x in missing]
    assert not missing, "Write an entry for each, with its cause and its cure:\n" + "\n".join(lines)


def test_every_entry_is_a_message(messages, listed):
    found = owners(messages, listed)
    gone = [x for x in listed if x not in found]
    assert not gone, "Delete these entries, or write them as the messages begin now:\n" + str(gone)
    assert [x for x, count in collections.Counter(listed).items() if count > 1] == []


def test_an_entry_says_enough_to_be_found(messages, listed):
    """Words that begin many messages would hide a new one, which then had no entry of its own."""
    short = [x for x in listed if len(re.findall(r"\w+", x)) < 2]
    assert short == []
    shared = {}
    for entry, several in owners(messages, listed).items():
        if entry is not None and len({x.where for x in several}) > 1:
            begins = {" ".join(x.text.split()[:_AGREE]) for x in several}
            if len(begins) > 1:
                shared[entry] = sorted(begins)
    assert shared == {}


def test_internal_messages_exist(messages):
    files = collections.Counter()
    for message in messages:
        for file, start in INTERNAL:
            text = message.text or message.code
            if message.where.startswith(f"{file}:") and (
                text.startswith(start) or message.code.startswith(start)
            ):
                files[file, start] += 1
    assert set(files) == set(INTERNAL)
