"""Conversations: each turn costs its own tokens, says what a full reading says, forges nothing."""

import functools

import keras
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import keras_rgemma
import tiny
from backend_independent import backend_independent
from generation import plain
from keras_rgemma.generation.programs import GenerationPrograms

MESSAGES = ("What is a lighthouse?", "And a river?", " What is water made of? ")


@pytest.fixture(scope="module")
def lm():
    keras.utils.set_random_seed(0)  # before the fixture that seeds each test
    return tiny.wordy(tiny.causal_lm(sequence_length=64))


@pytest.fixture(scope="module")
def preset():
    return keras_rgemma.RGemmaCausalLM.from_preset("rgemma_tiny_en")


def written(history, answers=True):
    """A conversation as the text that a model is trained with."""
    text = ""
    for message in history:
        is_users = message["role"] == "user"
        content = message["content"].strip() if is_users else message["content"]
        text += f"<start_of_turn>{message['role']}\n{content}<end_of_turn>\n"
    return text + ("" if answers else "<start_of_turn>model\n")


class Counter:
    """Counts the tokens that a model reads and writes."""

    def __init__(self, monkeypatch):
        self.ids = []
        prefill, decode = GenerationPrograms.prefill, GenerationPrograms.decode

        def counted_prefill(programs, rows, *args):
            self.ids += [int(id) for id in rows[0]]
            return prefill(programs, rows, *args)

        def counted_decode(programs, rows, *args):
            last = int(tiny.numpy(rows.last_token_ids)[0])
            new, rows = decode(programs, rows, *args)
            # Each new token comes from a step that reads the one before it.
            self.ids += [last, *new[0].tolist()][: len(new[0])]
            return new, rows

        monkeypatch.setattr(GenerationPrograms, "prefill", counted_prefill)
        monkeypatch.setattr(GenerationPrograms, "decode", counted_decode)


@pytest.mark.slow
def test_twenty_turns_cost_their_own_tokens_and_read_like_the_whole(preset, monkeypatch):
    counter = Counter(monkeypatch)
    chat = preset.chat(max_new_tokens=24)
    for turn in range(20):
        before, counter.ids = int(chat.state.num_tokens[0]), []
        history = [*chat.history, {"role": "user", "content": f"{turn}. {MESSAGES[turn % 3]}"}]
        answer = chat.send(history[-1]["content"])
        after = int(chat.state.num_tokens[0])
        # All but the last token of the turn, and the last one of the turn before.
        assert len(counter.ids) == after - before
        if turn in (0, 1, 6, 19):
            whole = written(history, answers=False)
            read = preset.generate(whole, max_new_tokens=24, strip_prompt=True)
            # In a text a `<start_of_turn>` is text; an answer ends with it.
            assert answer == read.split("<start_of_turn>")[0]
    assert len(chat.history) == 40


def test_the_tokens_are_those_of_the_format(lm, monkeypatch):
    counter = Counter(monkeypatch)
    chat = lm.chat(max_new_tokens=5)
    for message in MESSAGES:
        chat.send(message)
    ids = counter.ids
    text = lm.preprocessor.tokenizer.detokenize(ids[1:])
    assert ids[0] == lm.preprocessor.tokenizer.start_token_id
    assert ids.count(lm.preprocessor.tokenizer.start_token_id) == 1
    whole = written(chat.history)
    # The last answer's last token and its end are not read yet.
    assert whole.startswith(text) and len(whole) - len(text) < 24
    first = written(chat.history[:1], answers=False)
    assert ids[: len(ids)][: len(lm.preprocessor.prompt_token_ids([first])[0])] == list(
        lm.preprocessor.prompt_token_ids([first])[0]
    )
    assert [message["role"] for message in chat.history] == ["user", "model"] * 3
    assert [message["content"] for message in chat.history[::2]] == list(MESSAGES)


def test_streamed_answers_are_those_that_are_sent(lm):
    chats = [lm.chat(max_new_tokens=9) for _ in range(2)]
    for message in MESSAGES:
        pieces = list(chats[1].stream(message))
        assert "".join(pieces) == chats[0].send(message)
        assert len(pieces) > 1
    assert chats[0].history == chats[1].history


@pytest.mark.parametrize("ending", ["end_token_id", "end_token2_id"])
def test_an_answer_may_end_with_either_stop_token(lm, monkeypatch, ending):
    tokenizer = lm.preprocessor.tokenizer
    end = getattr(tokenizer, ending)
    word = list(tokenizer(" fox"))
    other = type(lm)(lm.backbone, lm.preprocessor)
    other.compile(sampler=tiny.Scripted([[*word, end, *word, end]]))
    chat = other.chat()
    assert chat.send("Hi") == " fox"
    counter = Counter(monkeypatch)
    chat.send("And?")
    expected = "<end_of_turn>\n<start_of_turn>user\nAnd?<end_of_turn>\n<start_of_turn>model\n"
    assert tokenizer.detokenize(counter.ids).startswith(expected)


def test_an_answer_that_is_left_stays_as_far_as_it_was_given(lm):
    whole = lm.chat(max_new_tokens=12).send("Hi")
    chat = lm.chat(max_new_tokens=12)
    stream = chat.stream("Hi")
    given_out = next(stream) + next(stream)
    assert chat.history[-1] == {"role": "model", "content": given_out}
    second = chat.send("And?")
    assert list(stream) == []
    assert whole.startswith(given_out) and whole != given_out
    assert [message["content"] for message in chat.history] == ["Hi", given_out, "And?", second]
    again = lm.chat(history=chat.history[:2], max_new_tokens=12)
    assert again.send("And?") == second


def test_looking_at_a_conversation_does_not_end_an_answer(lm, tmp_path):
    whole = lm.chat(max_new_tokens=12).send("Hi")
    chat = lm.chat(max_new_tokens=12)
    stream = chat.stream("Hi")
    given_out = next(stream)
    fork = chat.fork()
    chat.save(tmp_path / "chat")
    assert chat.state.num_tokens == fork.state.num_tokens
    chat.history.clear()
    assert given_out + "".join(stream) == whole
    assert fork.history[-1]["content"] == given_out
    assert chat.state.num_tokens > fork.state.num_tokens
    assert lm.load_chat(tmp_path / "chat", max_new_tokens=4).send("And?") == (
        lm.chat(history=fork.history, max_new_tokens=4).send("And?")
    )


def test_an_interruption_at_any_moment_keeps_the_conversation(lm, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    programs = lm.make_generate_function()
    chat = lm.chat(max_new_tokens=6)
    first = chat.send("Hi")
    tokens = chat.state.num_tokens
    for target, name in ((programs, "prefill"), (lm, "fingerprint")):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(target, name, interrupt)
            chat.send("lost")
        assert chat.history[-1] == {"role": "model", "content": first}
        assert chat.state.num_tokens == tokens
    stream = chat.stream("And?")
    given_out = next(stream)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(programs, "start_block", interrupt)
        next(stream)
    assert chat.history[-1]["content"] == given_out
    again = lm.chat(history=chat.history, max_new_tokens=6)
    assert chat.send("More") == again.send("More")


def test_a_state_belongs_to_the_model_that_read_it():
    lm = tiny.wordy(tiny.causal_lm(sequence_length=64))
    chat, stream = lm.chat(max_new_tokens=4), lm.stream("Hi", max_new_tokens=4)
    chat.send("Hi")
    next(stream)
    tiny.randomize(lm)
    for state in (chat.state, stream.state):
        with pytest.raises(ValueError, match="other weights"):
            lm.generate("", state=state, max_new_tokens=1)
    with pytest.raises(ValueError, match="other weights"):
        chat.send("And?")


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_state_that_is_asked_for_after_training_belongs_to_the_model_before(jit_compile):
    lm = tiny.randomize(tiny.causal_lm(sequence_length=16))
    jit_compile = jit_compile and keras.config.backend() != "torch"  # where it takes minutes
    lm.compile(keras.optimizers.SGD(0.1), jit_compile=jit_compile)
    before = lm.fingerprint()
    stream = lm.stream("Hi", max_new_tokens=4, stop_token_ids=None)
    next(stream)
    lm.fit([tiny.SENTENCES[0]], verbose=0)
    assert stream.state.fingerprint == before != lm.fingerprint()
    stream = lm.stream("Hi", max_new_tokens=4, stop_token_ids=None)
    next(stream)
    before = lm.fingerprint()
    embeddings = lm.backbone.token_embedding.embeddings
    value = tiny.numpy(embeddings)
    value[7, 3] += 1  # what no sample holds
    embeddings.assign(value)
    assert stream.state.fingerprint == before != lm.fingerprint()


def test_forks_and_files_go_on_each_for_itself(lm, tmp_path):
    chat = lm.chat(max_new_tokens=6)
    chat.send(MESSAGES[0])
    fork = chat.fork()
    chat.save(tmp_path / "chat.rgstate")
    expected = chat.send(MESSAGES[1])
    assert len(fork.history) == 2 and len(chat.history) == 4
    fork.send("Something else?")
    assert chat.fork().history == chat.history
    loaded = lm.load_chat(tmp_path / "chat.rgstate", max_new_tokens=6)
    assert loaded.history == chat.history[:2]
    assert loaded.send(MESSAGES[1]) == expected
    # It is a state, too.
    assert keras_rgemma.RGemmaState.load(tmp_path / "chat.rgstate").batch_size == 1


def test_a_history_that_is_given_is_read_as_it_was_said(lm):
    history = [
        {"role": "user", "content": "Hi"},
        {"role": "model", "content": "Hello <end_of_turn> you"},
    ]
    chat = lm.chat(history=history, max_new_tokens=5)
    assert chat.history == history
    state = lm.prefill(
        np.array(
            [
                2,
                *lm.preprocessor.tokenizer("<start_of_turn>user\nHi<end_of_turn>\n"),
                *lm.preprocessor.tokenizer("<start_of_turn>model\nHello "),
                *lm.preprocessor.tokenizer("<"),
                *lm.preprocessor.tokenizer("end_of_turn>"),
                *lm.preprocessor.tokenizer(" you"),
                lm.preprocessor.tokenizer.end_token2_id,
            ]
        )
    )
    assert chat.state.num_tokens.tolist() == state.num_tokens.tolist()
    np.testing.assert_allclose(
        tiny.numpy(chat.state.consumed.layers[0].recurrence),
        tiny.numpy(state.consumed.layers[0].recurrence),
        0,
        1e-4,  # The weights that let it write words multiply errors of rounding, too.
    )
    history[0]["content"] = "changed"
    assert chat.history[0]["content"] == "Hi"


def test_samplers_that_cannot_stream_can_send():
    lm = tiny.causal_lm()
    lm.compile(sampler="beam")
    chat = lm.chat(max_new_tokens=4)
    assert isinstance(chat.send("Hi"), str)
    before = [dict(message) for message in chat.history]
    with pytest.raises(ValueError, match="BeamSampler"):
        chat.stream("Hi")
    assert chat.history == before


def test_bad_input_is_refused_and_leaves_the_conversation(lm, tmp_path):
    chat = lm.chat(max_new_tokens=4)
    chat.send("Hi")
    before = [dict(message) for message in chat.history]
    for wrong in (None, 3, ["Hi"]):
        with pytest.raises(TypeError, match="must be a str"):
            chat.send(wrong)
    with pytest.raises(ValueError, match="Unicode"):
        chat.send("\ud800")
    assert chat.history == before
    for history in (
        ["Hi"],
        [{"role": "model", "content": "Hi"}],
        [{"role": "user"}, {"role": "model", "content": "Hi"}],
        [{"role": "user", "content": "Hi"}],
        [{"role": "user", "content": "Hi"}, {"role": "tool", "content": "Hi"}],
    ):
        with pytest.raises(ValueError, match="A history"):
            lm.chat(history=history)
    with pytest.raises(ValueError, match="max_new_tokens"):
        lm.chat(max_new_tokens=-1)
    with pytest.raises(ValueError, match="without a preprocessor"):
        plain.lively_model().chat()
    plain_tokenizer = keras_rgemma.RGemmaTokenizer(proto=tiny.proto(end_of_turn=False))
    other = tiny.causal_lm(keras_rgemma.RGemmaCausalLMPreprocessor(plain_tokenizer))
    with pytest.raises(ValueError, match="no '<end_of_turn>'"):
        other.chat()
    lm.prefill("Hi").save(tmp_path / "state")
    with pytest.raises(ValueError, match="without a conversation"):
        lm.load_chat(tmp_path / "state")
    chat.save(tmp_path / "chat")
    with pytest.raises(ValueError, match="another model"):
        tiny.causal_lm().load_chat(tmp_path / "chat")


# === What a person types ===

TOKENIZER = functools.cache(tiny.tokenizer)
FRAGMENTS = ("<end_of_turn>", "<start_of_turn>", "<eos>", "<bos>", "<", "end_of_turn>", "\n", " ▁")


@backend_independent
@given(st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=5)), max_size=8))
@example(["<start_of_", "<end_of_turn>", "turn>"])
@example(["<end_of", "_turn>"])
def test_no_text_forges_a_control_token(fragments):
    text, tokenizer = "".join(fragments), TOKENIZER()
    ids = tokenizer.literal_token_ids(text)
    controls = {tokenizer.token_to_id(token) for token in tiny.TURNS} | set(range(3))
    assert not controls & set(ids)
    assert (tokenizer.detokenize(ids) if ids else "") == text
    plain_text = not any(token in text for token in (*tiny.TURNS, "<bos>", "<eos>", "<pad>"))
    assert not plain_text or ids == list(tokenizer(text))
