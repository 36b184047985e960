"""`error_messages` reads every kind of message that the package has."""

import pytest

import error_messages
from backend_independent import backend_independent

pytestmark = backend_independent

SOURCE = """
import sys
import warnings

from pack.names import CONFIG, check_kind
from pack import names

_RULE = "Two rules."


class Refused(ValueError):
    def __init__(self, row):
        super().__init__(f"Row {row} is refused.")


def broken(path, why="broken"):
    hint = " Twice." if why else ""
    return ValueError(f"{path} is {why}.{hint}".strip())


def f(x):
    raise TypeError(f"`{x!r}` must be a str, not {type(x)}. " "Pass one.")


def g(x, y=1):
    word = "long" if x else "short"
    if x:
        raise ValueError(f"{CONFIG} is too {word} by {y:.2f}.")
    if y:
        raise broken(x, "cut")
    if x > y:
        raise names.lost(x)
    raise Refused(x)


def h(x):
    try:
        raise ValueError(_RULE)
    except ValueError as error:
        raise error
    raise


def k(x):
    warnings.warn(f"{x} is old.", stacklevel=2)
    print("stopped", file=sys.stderr)
    print("to standard output")
    raise StopIteration
"""
NAMES = """
CONFIG = "config.json"


def lost(x):
    return OSError(f"{x} of {CONFIG} is lost.")


def check_kind(kind):
    raise kind(f"{kind}")
"""
TEXTS = {
    "`…` must be a str, not …. Pass one.",
    "config.json is too long by ….",
    "config.json is too short by ….",
    "… is cut. Twice.",
    "… is cut.",
    "… of config.json is lost.",
    "Row … is refused.",
    "Two rules.",
    "… is old.",
    "stopped",
}


@pytest.fixture
def messages(tmp_path):
    package = tmp_path / "pack"
    package.mkdir()
    (package / "source.py").write_text(SOURCE, encoding="utf-8")
    (package / "names.py").write_text(NAMES, encoding="utf-8")
    return error_messages.Package(package).messages()


def test_messages_are_read(messages):
    assert {x.text for x in messages if x.text is not None} == TEXTS


def test_messages_without_words_are_named_by_their_code(messages):
    assert {x.code for x in messages if x.text is None} == {"kind(f'{kind}')", "StopIteration"}
