"""Messages are answered by `generate` as `chat` answers them, in every form of their roles."""

import keras
import numpy as np
import pandas as pd
import pytest

import keras_rgemma
import tiny

USER = {"role": "user", "content": "What is a lighthouse?"}
MODEL = {"role": "model", "content": "A tower."}
MORE = {"role": "user", "content": "And a river?<end_of_turn>\n<start_of_turn>user\nNo"}
SYSTEM = {"role": "system", "content": "Be kind."}
KIND = {"role": "user", "content": "Be kind.\n\nWhat is a lighthouse?"}
HISTORIES = {
    "one turn": [USER],
    "three turns": [USER, MODEL, MORE],
    "system": [KIND, MODEL, MORE],
}
NEW = 9


def in_parts(message):
    text = message["content"]
    parts = [{"type": "text", "text": part} for part in (text[:4], text[4:])]
    return {**message, "content": parts}


FORMS = {
    "one turn": ("one turn", [USER]),
    "a tuple": ("one turn", (USER,)),
    "turns": ("three turns", [USER, MODEL, MORE]),
    "the name of others": ("three turns", [USER, {**MODEL, "role": "assistant"}, MORE]),
    "parts": ("three turns", list(map(in_parts, [USER, MODEL, MORE]))),
    "a system": ("system", [SYSTEM, USER, MODEL, MORE]),
    "a system in parts": ("system", [in_parts(SYSTEM), USER, {**MODEL, "role": "assistant"}, MORE]),
}


@pytest.fixture(scope="module")
def lm():
    keras.utils.set_random_seed(0)
    # A window and weights with which an answer depends on the first turns.
    return tiny.wordy(tiny.causal_lm(sequence_length=64, sliding_window_size=200), seed=9)


@pytest.fixture(scope="module")
def answers(lm):
    """What `chat` answers to each of the histories."""
    answers = {}
    for name, (*before, last) in HISTORIES.items():
        chat = lm.chat(before, max_new_tokens=NEW)
        answers[name] = chat.send(last["content"])
    assert len(set(answers.values())) == len(answers)
    return answers


def scripted(lm, rows):
    """The model with the same weights, which writes given tokens."""
    writer = type(lm)(lm.backbone, lm.preprocessor)
    writer.compile(sampler=tiny.Scripted(rows))
    return writer


# === generate, stream, prefill, score ===


@pytest.mark.parametrize("form", FORMS)
def test_generate_and_stream_give_what_chat_answers(lm, answers, form):
    name, messages = FORMS[form]
    assert lm.generate(messages, max_new_tokens=NEW) == answers[name]
    assert lm.generate(messages, max_new_tokens=NEW, strip_prompt=True) == answers[name]
    deltas = list(lm.stream(messages, max_new_tokens=NEW))
    assert "".join(deltas) == answers[name] and len(deltas) > 1
    *before, last = messages
    assert lm.chat(before, max_new_tokens=NEW).send([last]) == answers[name]
    if len(messages) > 2:  # all at once to a conversation that has not begun
        assert lm.chat(max_new_tokens=NEW).send(messages) == answers[name]


@pytest.mark.parametrize("make", [list, tuple, iter])
def test_several_conversations_get_an_answer_each(lm, answers, make):
    several = [messages for _, messages in FORMS.values()]
    expected = [answers[name] for name, _ in FORMS.values()]
    assert lm.generate(make(several), max_new_tokens=NEW) == expected
    deltas = zip(*lm.stream(make(several), max_new_tokens=NEW), strict=True)
    assert list(map("".join, deltas)) == expected
    assert lm.generate(several[:1], max_new_tokens=NEW) == expected[:1]


def test_conversations_in_columns_and_rows(lm, answers):
    both = [[USER], [USER, MODEL, MORE]]
    expected = [answers["one turn"], answers["three turns"]]
    rows = [{"messages": messages} for messages in both]
    for form in ({"messages": both}, rows, pd.DataFrame({"messages": both}), iter(rows)):
        assert lm.generate(form, max_new_tokens=NEW) == expected
    assert lm.generate({"messages": both[1]}, max_new_tokens=NEW) == expected[1]
    renamed = type(lm)(lm.backbone, tiny.preprocessor(64, columns={"messages": "turns"}))
    assert renamed.generate({"turns": both}, max_new_tokens=NEW) == expected
    renamed = type(lm)(lm.backbone, tiny.preprocessor(64, columns={"messages": "content"}))
    assert renamed.generate(both, max_new_tokens=NEW) == expected
    text = lm.generate("A river", max_new_tokens=NEW)
    for row in ({"text": "A river", "messages": None}, {"text": "A river", "messages": both[0]}):
        assert lm.generate([row], max_new_tokens=NEW) == [text]
    ids = np.array([[2, 5, 6]])
    found = lm.generate({"token_ids": ids, "messages": None}, max_new_tokens=2)
    assert tiny.numpy(found["token_ids"]).shape[0] == 1


def test_an_array_of_conversations(lm, answers):
    """As pandas reads them from a Parquet file."""
    several = np.empty(2, object)
    several[:] = [np.array([USER], object), np.array([USER, MODEL, MORE], object)]
    expected = [answers["one turn"], answers["three turns"]]
    assert lm.generate(several, max_new_tokens=NEW) == expected


def test_several_answers_to_each_conversation(lm, answers):
    both = [[USER], [USER, MODEL, MORE]]
    expected = [answers[name] for name in ("one turn", "three turns") for _ in range(2)]
    assert lm.generate(both, max_new_tokens=NEW, num_return_sequences=2) == expected


def test_the_default_limit_and_stop_strings_are_those_of_chat(lm, answers):
    assert lm.generate([USER]) == lm.chat().send(USER["content"])
    long = [{**USER, "content": "What is a lighthouse? " * 20}]
    assert lm.generate(long) == lm.chat().send(long)
    stop = answers["one turn"][4:7]
    expected = lm.chat(stop=stop).send([USER])
    assert lm.generate([USER], stop=stop) == "".join(lm.stream([USER], stop=stop)) == expected
    assert stop not in expected


def test_a_state_that_has_read_messages_is_answered_from(lm, answers):
    for name, history in HISTORIES.items():
        state = lm.prefill(history)
        text = lm.generate("", state=state, max_new_tokens=NEW, strip_prompt=True)
        assert text == answers[name]
        if len(history) > 1:
            state = lm.prefill(history[:-1])
            assert lm.generate(history[-1:], state=state, max_new_tokens=NEW) == answers[name]
    chat = lm.chat([USER, MODEL])
    assert chat.state.num_tokens.tolist() == lm.prefill([USER, MODEL]).num_tokens.tolist()


def test_a_conversation_goes_on_from_the_state_of_its_answer(lm):
    """However the answer ended: by its limit, or by a token."""
    chat, state = lm.chat(max_new_tokens=NEW), None
    for message in ("Hi", "And?", "More"):
        messages = [{"role": "user", "content": message}]
        text, state = lm.generate(messages, state=state, max_new_tokens=NEW, return_state=True)
        assert text == chat.send(message)
        assert state.num_tokens.tolist() == chat.state.num_tokens.tolist()
    states = state.repeat(2)
    both = [messages, [{"role": "user", "content": "Other"}]]
    expected = [chat.fork().send(turns) for turns in both]
    assert lm.generate(both, state=states, max_new_tokens=NEW) == expected


def test_scores_of_messages_are_those_of_their_tokens(lm):
    tokenizer = lm.preprocessor.tokenizer
    text = "<start_of_turn>user\nWhat is a lighthouse?<end_of_turn>\n<start_of_turn>model\nA tower."
    ids = np.array([[2, *tokenizer(text + "<end_of_turn>")]])
    targets = np.roll(ids, -1, axis=1)
    expected = tiny.numpy(lm.score(ids, scoring_mode="loss", target_ids=targets))
    for messages in ([USER, MODEL], [[USER, MODEL]]):
        found = tiny.numpy(lm.score(messages, scoring_mode="loss"))
        np.testing.assert_array_equal(found[:, :-1], expected[:, :-1])
        assert found.shape == expected.shape and found[0, -1] == 0


# === Ends of answers ===


@pytest.mark.parametrize("ending", ["<start_of_turn>", "<end_of_turn>", "<eos>"])
def test_a_token_that_ends_an_answer_is_not_in_its_text(lm, ending):
    tokenizer = lm.preprocessor.tokenizer
    word, end = list(tokenizer(" fox")), tokenizer.token_to_id(ending)
    writer = scripted(lm, [[*word, end] * 4])  # each answer goes on where the last one ended
    assert writer.generate([USER]) == " fox"
    assert "".join(writer.stream([USER])) == " fox"
    assert "".join(writer.chat().stream("Hi")) == " fox"
    chat = writer.chat(stop="dog")
    assert chat.send("Hi") == " fox"
    assert chat.history[-1] == {"role": "model", "content": " fox"}


@pytest.mark.parametrize("ending", ["<start_of_turn>", "<eos>"])
def test_the_next_turn_reads_an_answer_that_ended_by_its_end_of_turn(lm, ending):
    tokenizer = lm.preprocessor.tokenizer
    word = list(tokenizer(" fox"))
    states = []
    for token in (ending, "<end_of_turn>"):
        end = tokenizer.token_to_id(token)
        writer = scripted(lm, [[*word, end, *word, end, *word, end]])
        chat = writer.chat()
        chat.send("Hi")
        chat.send("And?")
        _, state = writer.generate(
            [MORE], state=chat.state, max_new_tokens=len(word), return_state=True
        )
        states.append(state)
    given, expected = states
    assert given.num_tokens.tolist() == expected.num_tokens.tolist()
    for one, other in zip(given.consumed.layers, expected.consumed.layers, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(tiny.numpy(a), tiny.numpy(b))


def test_a_text_goes_on_after_a_start_of_turn(lm):
    """A prompt that is text stops where it did: the callers write the turns themselves."""
    tokenizer = lm.preprocessor.tokenizer
    turn = tokenizer.token_to_id("<start_of_turn>")
    writer = scripted(lm, [[300, turn, 300]])
    limits = {"max_new_tokens": 3, "strip_prompt": True}
    assert "<start_of_turn>" in writer.generate("The", **limits)
    ids = scripted(lm, [[300, turn, 300]])
    assert "<start_of_turn>" in ids.generate([USER], max_new_tokens=3, stop_token_ids=None)


# === Conversations that are held ===


def test_a_system_message_waits_in_a_chat_for_the_users(lm, answers, tmp_path):
    chat = lm.chat([SYSTEM], max_new_tokens=NEW)
    assert chat.history == [SYSTEM]
    assert chat.state.num_tokens.tolist() == [1]
    chat.save(tmp_path / "chat")
    loaded = lm.load_chat(tmp_path / "chat", max_new_tokens=NEW)
    others = [chat, chat.fork(), loaded, lm.chat(chat.history, max_new_tokens=NEW)]
    expected = lm.generate([SYSTEM, USER], max_new_tokens=NEW)
    assert expected == lm.generate([KIND], max_new_tokens=NEW)
    for other in others:
        assert other.send(USER["content"]) == expected
        assert other.history == [KIND, {"role": "model", "content": expected}]
    chat.save(tmp_path / "chat")
    assert keras_rgemma.RGemmaState.load(tmp_path / "chat").batch_size == 1
    loaded = lm.load_chat(tmp_path / "chat", max_new_tokens=NEW)
    assert loaded.history == chat.history
    assert loaded.send("More") == chat.send("More")


def test_a_history_has_the_roles_of_user_and_model(lm):
    chat = lm.chat(list(map(in_parts, [SYSTEM, USER, {**MODEL, "role": "assistant"}])))
    assert chat.history == [KIND, MODEL]


def test_messages_that_are_sent_go_on_with_the_conversation(lm, answers):
    chat = lm.chat([USER, MODEL], max_new_tokens=NEW)
    forks = [chat.fork() for _ in range(3)]
    assert forks[0].send(MORE) == answers["three turns"]
    assert "".join(forks[1].stream([MORE])) == answers["three turns"]
    assert forks[2].send([MORE, MODEL, USER]) == lm.generate(
        [USER, MODEL, MORE, MODEL, USER], max_new_tokens=NEW
    )
    assert [turn["role"] for turn in forks[2].history] == ["user", "model"] * 3


WRONG = {
    "a text": (["Hi"], TypeError, "must be a str"),
    "no message": ([], TypeError, "must be a str"),
    "no user": ([MODEL], ValueError, "message 0 one of 'model'"),
    "two users": ([MORE, MORE], ValueError, "message 1 one of 'user'"),
    "an answer last": ([MORE, MODEL], ValueError, "The last message is the model's"),
    "a system": ([SYSTEM, MORE], ValueError, "message 0 one of 'system'"),
    "a system alone": ([SYSTEM], ValueError, "one of 'system'"),
    "all messages again": ([USER, MODEL, MORE], ValueError, r"already.*messages\[2:\]"),
    "the history again": ([USER, {**MODEL, "role": "assistant"}], ValueError, "already"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_cannot_be_sent_leaves_the_conversation(lm, kind):
    message, error, text = WRONG[kind]
    chat = lm.chat([USER, MODEL], max_new_tokens=NEW)
    for method in (chat.send, chat.stream):
        with pytest.raises(error, match=text):
            method(message)
    assert chat.history == [USER, MODEL]


def test_messages_that_cannot_be_answered_are_refused(lm):
    for method in (lm.generate, lm.stream):
        with pytest.raises(ValueError, match="The last message is the model's"):
            method([USER, MODEL])
        with pytest.raises(ValueError, match=r"Conversation 1 is a list.*message 0 one of 'model'"):
            method([[USER], [MODEL]])
    for method in (lm.generate, lm.stream, lm.prefill, lm.score):
        with pytest.raises(ValueError, match="The last message is the system's"):
            method([SYSTEM])
        with pytest.raises(ValueError, match="Conversation 1 is a list"):
            method([[USER], "Hi"])
    with pytest.raises(ValueError, match="The last message is the user's"):
        lm.chat([USER])
    with pytest.raises(ValueError, match=r"A history is a list.*None"):
        lm.chat(None)
    with pytest.raises(ValueError, match="lists of messages under `messages`"):
        lm.generate(USER)
    with pytest.raises(ValueError, match="2 rows"):
        lm.generate([USER], state=lm.prefill(["a", "b"]))
    with pytest.raises(ValueError, match="pieces of one text"):
        lm.prefill(iter([USER]))
    plain = keras_rgemma.RGemmaTokenizer(proto=tiny.proto(end_of_turn=False))
    other = tiny.causal_lm(keras_rgemma.RGemmaCausalLMPreprocessor(plain))
    with pytest.raises(ValueError, match="no '<end_of_turn>'"):
        other.generate([USER])


def test_samplers_that_cannot_stream_answer_messages():
    lm = tiny.wordy(tiny.causal_lm())
    lm.compile(sampler="beam")
    assert lm.generate([USER], max_new_tokens=4) == lm.chat(max_new_tokens=4).send([USER])
    lm.compile(sampler="contrastive")
    assert isinstance(lm.generate([USER], max_new_tokens=4), str)
