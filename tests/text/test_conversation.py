"""Messages in the forms that people have them in become the same turns, or an error names them."""

import numpy as np
import pytest

import tiny
from backend_independent import backend_independent
from keras_rgemma.text.conversation import (
    conversation,
    is_conversation,
    read_history,
    read_messages,
    turns_token_ids,
)

USER = {"role": "user", "content": "What is a river?"}
MODEL = {"role": "model", "content": "Water."}
SYSTEM = {"role": "system", "content": "Be kind."}
MORE = {"role": "user", "content": "And the sea?"}
KIND = {"role": "user", "content": "Be kind.\n\nWhat is a river?"}


def parts(*texts, **more):
    return [{"type": "text", "text": text, **more} for text in texts]


def array(messages):
    """As pandas and Arrow give the lists of a Parquet file."""
    values = np.empty(len(messages), object)
    values[:] = messages
    return values


FORMS = {
    "plain": ([USER, MODEL, MORE], [USER, MODEL, MORE]),
    "a tuple": ((USER, MODEL), [USER, MODEL]),
    "an array": (array([USER, MODEL]), [USER, MODEL]),
    "the name of others": ([USER, {**MODEL, "role": "assistant"}], [USER, MODEL]),
    "a system": ([SYSTEM, USER, MODEL], [KIND, MODEL]),
    "a system with lines": ([{**SYSTEM, "content": "\nBe kind.\n\n"}, USER], [KIND]),
    "a system in parts": ([{**SYSTEM, "content": parts("Be kind.")}, USER], [KIND]),
    "an empty system": ([{**SYSTEM, "content": " "}, USER], [USER]),
    "a system alone": ([SYSTEM], [SYSTEM]),
    "parts": ([{**USER, "content": parts("What is ", "a river?")}], [USER]),
    "parts of a file": ([{**USER, "content": array(parts(USER["content"], image=None))}], [USER]),
    "a part without a type": ([{**USER, "content": [{"text": USER["content"]}]}], [USER]),
    "columns that are empty": ([{**USER, "tool_calls": None, "name": None}], [USER]),
    "bytes": ([{**USER, "content": b"What is a river?"}], [USER]),
}


@backend_independent
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_messages_gives_the_same_turns(form):
    messages, expected = FORMS[form]
    assert is_conversation(messages)
    assert read_messages(messages) == expected


@backend_independent
def test_turns_are_the_text_of_the_format():
    tokenizer = tiny.tokenizer()
    ids = turns_token_ids(tokenizer, read_messages([SYSTEM, USER, MODEL]))
    text = "<start_of_turn>user\nBe kind.\n\nWhat is a river?<end_of_turn>\n"
    text += "<start_of_turn>model\nWater.<end_of_turn>"
    assert tokenizer.detokenize(ids) == text
    assert ids == list(tokenizer(text))
    assert turns_token_ids(tokenizer, [MORE], is_first=False) == list(
        tokenizer("\n<start_of_turn>user\nAnd the sea?<end_of_turn>")
    )


@backend_independent
def test_a_system_message_waits_for_the_users():
    assert read_messages([USER, MODEL], history=[SYSTEM]) == [KIND, MODEL]
    assert read_messages([USER], history=[USER, MODEL]) == [USER]
    assert read_history([SYSTEM]) == [SYSTEM]
    assert read_history([]) == []


IMAGE = {"type": "image", "image": "rgb"}
WRONG = {
    "no message": ([], (), r"Received: \[\]"),
    "no list": ("Hi", (), "Received: 'Hi'"),
    "a text": (["Hi"], (), "message 0: 'Hi', which is no dict"),
    "another role": ([USER, {**MODEL, "role": "tool"}], (), "message 1: .*whose role is 'tool'"),
    "no role": ([{"content": "Hi"}], (), "message 0: .*whose role is None"),
    "two users": ([USER, MORE], (), "message 1 one of 'user', where one of 'model' comes next"),
    "two models": ([USER, MODEL, MODEL], (), "message 2 one of 'model'"),
    "the model first": ([MODEL], (), "message 0 one of 'model', where one of 'user'"),
    "a late system": ([USER, MODEL, SYSTEM], (), "message 2 one of 'system'"),
    "two systems": ([SYSTEM, SYSTEM], (), "message 1 one of 'system'"),
    "a system after turns": ([SYSTEM, USER], [USER, MODEL], "message 0 one of 'system'"),
    "an image": ([{**USER, "content": [*parts("a"), IMAGE]}], (), "message 0.*no text: .*'image'"),
    "an odd part": ([{**USER, "content": ["a"]}], (), "no text: 'a'"),
    "a missing text": ([{**USER, "content": parts(None)}], (), "message 0.*no text"),
    "no content": ([{"role": "user"}], (), "message 0.*content is None"),
    "a number": ([{**USER, "content": 3}], (), "message 0.*content is 3"),
    "a tool": (
        [USER, {**MODEL, "content": None, "tool_calls": [{"name": "f"}]}],
        (),
        "message 1: .*calls a tool",
    ),
    "no unicode": ([{**USER, "content": "\ud800"}], (), "valid Unicode"),
}


@backend_independent
@pytest.mark.parametrize("kind", WRONG)
def test_messages_that_are_malformed_are_named(kind):
    messages, history, error = WRONG[kind]
    with pytest.raises(ValueError, match=error):
        read_messages(messages, history=history)


@backend_independent
def test_lists_of_other_things_are_no_conversations():
    for other in ([], ["Hi"], "Hi", [[USER]], [{"text": "Hi"}], [1], np.array(["Hi"]), USER, None):
        assert not is_conversation(other)


def learnt(messages, **kwargs):
    """The text that the loss of a conversation falls on."""
    tokenizer = tiny.tokenizer()
    document = conversation(tokenizer, messages, **kwargs)
    pairs = zip(document.ids, document.loss_mask, strict=True)
    ids = [id for id, counts in pairs if counts]
    return tokenizer.detokenize(ids) if ids else ""


@backend_independent
def test_the_turns_of_a_prompt_are_not_learnt():
    turns = [USER, {**MODEL, "role": "assistant"}, MORE, {**MODEL, "content": "Salt."}]
    assert learnt(turns) == "Water.<end_of_turn>Salt.<end_of_turn>"
    for count in (2, 3):
        assert learnt(turns, num_prompt_turns=count) == "Salt.<end_of_turn>"
    for count in (3, 4):  # a system message counts as one, and is part of another
        assert learnt([SYSTEM, *turns], num_prompt_turns=count) == "Salt.<end_of_turn>"
    assert learnt([SYSTEM, *turns], num_prompt_turns=2) == learnt(turns)
    assert learnt(turns, num_prompt_turns=4) == ""
    plain = conversation(tiny.tokenizer(), [KIND, *turns[1:]])
    assert conversation(tiny.tokenizer(), [SYSTEM, *turns]) == plain
    with pytest.raises(ValueError, match="The last message is the user's"):
        learnt(turns[:3])
    with pytest.raises(ValueError, match="The last message is the system's"):
        learnt([SYSTEM])
