"""The quiz by which the embedded preset is judged, and what the preset answers."""

import json
import pathlib
import re
import sys

import pytest

from backend_independent import backend_independent

FOLDER = pathlib.Path(__file__).parent.parent / "examples" / "train_rgemma_tiny"
RIVER = {"pos": "noun", "word": "river", "keys": ["stream", "watercourse"]}
OAK = {"pos": "noun", "word": "oak", "keys": ["tree"]}


@pytest.fixture
def quiz(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import quiz

    yield quiz
    for name in ("quiz", "phrasings"):
        sys.modules.pop(name, None)


@pytest.fixture
def questions(quiz):
    return json.loads(quiz.QUIZ.read_text())


@backend_independent
def test_a_right_answer_holds_a_key_word_and_ends(quiz):
    answers = {
        "A river is a large stream.<end_of_turn>": True,
        "A river is one of the Streams of water.<end_of_turn>": True,
        "A river is a large stream<end_of_turn>": False,  # no full stop
        "A river is a large stream. A stream is a river. A": False,  # goes on
        "A river is a large mainstream.<end_of_turn>": False,  # another word
        "A river is a tree.<end_of_turn>": False,
    }
    for answer, right in answers.items():
        assert quiz.judge([RIVER], [answer])["verdicts"] == [right]


@backend_independent
def test_chance_is_what_other_questions_would_call_right(quiz):
    answers = ["A river is a tree.<end_of_turn>", "An oak is a tree.<end_of_turn>"]
    found = quiz.judge([RIVER, OAK], answers)
    assert (found["right"], found["right_by_chance"], found["ended"]) == (1, 1, 2)
    found = quiz.judge([RIVER, OAK], ["stream", "tree"])
    assert (found["right"], found["right_by_chance"], found["ended"]) == (0, 0, 0)


@backend_independent
def test_the_questions_are_in_phrasings_that_were_not_trained(quiz, questions):
    from phrasings import PHRASINGS, QUIZ_PHRASINGS

    def pattern(phrasing):
        return re.escape(phrasing).replace(r"\{a\}", "(?:an? )?[a-z]+").replace(r"\{w\}", "[a-z]+")

    assert len(questions) == sum(quiz.QUESTIONS.values()) == 200
    assert len({(item["pos"], item["word"]) for item in questions}) == 200
    for item in questions:
        asked, plain = item["question"], item["plain"]
        kind = item["pos"]
        assert any(re.fullmatch(pattern(p), asked) for p in QUIZ_PHRASINGS[kind]), asked
        for trained in (p for group in PHRASINGS.values() for p in group):
            assert not re.fullmatch(pattern(trained), asked), (trained, asked)
        assert re.fullmatch(pattern(PHRASINGS[kind][0]), plain)
        assert item["keys"] and item["word"] not in item["keys"]
        assert not set(item["keys"]) & set(quiz.UNSPECIFIC.split())
