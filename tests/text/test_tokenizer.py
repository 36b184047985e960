"""The tokenizer: control tokens, exact round trips, and the same ids on the tf.data path."""

import functools
import io
import json
import pickle

import keras
import numpy as np
import pytest
import sentencepiece
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

import keras_rgemma
import tiny
from keras_rgemma import RGemmaTokenizer

SPACE = "\u2581"  # SentencePiece's own mark for a space
TEXTS = [
    "The quick brown fox.",
    "",
    " ",
    "   leading",
    "trailing   ",
    "a  b   c    d",
    "line\nline\n\nline\r\n",
    "tab\tand\t\ttab",
    "café naïve £5 ½",
    "日本語のテキスト",
    "smile 😀👩‍👩‍👧 done",
    "\x00\x7f\u200b\ufeff\ufffd",
    "<start_of_turn>user\nHi there<end_of_turn>\n<start_of_turn>model\n",
    "<bos> and <eos> and <pad> and <unk> and <0xE2>",
]
MARKED = [SPACE, f"a{SPACE}b", f"{SPACE}{SPACE} a {SPACE}\n", f"<end_of_turn>{SPACE}日"]


def ids_of(tokenizer, text):
    return [int(id) for id in tokenizer(text)]


@pytest.fixture
def tokenizer():
    return tiny.tokenizer()


@pytest.fixture
def without_end_of_turn():
    return RGemmaTokenizer(proto=tiny.proto(end_of_turn=False))


def test_control_tokens_have_gemmas_ids(tokenizer):
    assert tokenizer.pad_token_id == 0
    assert tokenizer.end_token_id == 1
    assert tokenizer.start_token_id == 2
    assert tokenizer.token_to_id("<start_of_turn>") == 4
    assert tokenizer.end_token2_id == 5
    assert [tokenizer.id_to_token(id) for id in range(6)] == [
        *("<pad>", "<eos>", "<bos>", "<unk>"),
        *("<start_of_turn>", "<end_of_turn>"),
    ]
    assert sorted(tokenizer.special_token_ids) == [0, 1, 2]
    assert tokenizer.vocabulary_size() == len(tokenizer.get_vocabulary()) == 400


def test_turn_markers_are_recognised_in_text(tokenizer):
    ids = ids_of(tokenizer, "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n")
    assert [id for id in ids if id in (4, 5)] == [4, 5, 4]
    assert ids[0] == 4
    # They also end the piece before them, whatever it is.
    assert ids_of(tokenizer, "Hi<end_of_turn>") == [*ids_of(tokenizer, "Hi"), 5]


def test_start_end_and_pad_are_not_recognised_in_text(tokenizer):
    assert not {0, 1, 2, 3} & set(ids_of(tokenizer, "<bos>a<eos>b<pad>c<unk>"))


@pytest.mark.parametrize("text", TEXTS + MARKED)
def test_text_comes_back_as_it_was(tokenizer, text):
    ids = tokenizer(text)
    assert tokenizer.detokenize(ids) == text
    assert tokenizer.detokenize([int(id) for id in ids]) == text


@given(st.text())
def test_any_text_comes_back_as_it_was(text):
    tokenizer = any_text_tokenizer()
    ids = tokenizer(text)
    assert 3 not in ids  # byte fallback leaves nothing unknown
    assert tokenizer.detokenize(ids) == text


@given(st.text(alphabet=f"ab {SPACE}\n\té日😀", max_size=12))
def test_spaces_and_their_mark_are_never_confused(text):
    tokenizer = any_text_tokenizer()
    assert tokenizer.detokenize(tokenizer(text)) == text
    assert tokenizer.detokenize(tokenizer([text, "a"])) == [text, "a"]


@functools.cache
def any_text_tokenizer():
    """One tokenizer for all examples; hypothesis does not renew fixtures between them."""
    return tiny.tokenizer()


def test_lists_are_tokenized_text_by_text(tokenizer):
    batch = tokenizer(TEXTS + MARKED)
    assert [[int(id) for id in row] for row in batch] == [
        ids_of(tokenizer, text) for text in TEXTS + MARKED
    ]
    assert tokenizer.detokenize(batch) == TEXTS + MARKED


@pytest.mark.parametrize("text", ["a b", f"a{SPACE}b"])
def test_every_kind_of_input_gives_the_same_ids(tokenizer, text):
    expected = ids_of(tokenizer, text)
    assert ids_of(tokenizer, text.encode()) == expected
    assert ids_of(tokenizer, tf.constant(text)) == expected
    for batch in ((text,), np.array([text]), tf.constant([text])):
        assert [[int(id) for id in row] for row in tokenizer(batch)] == [expected]


@pytest.mark.parametrize("text", ["a b", f"a{SPACE}b"])
def test_one_text_gives_an_int32_array(tokenizer, text):
    ids = tokenizer(text)
    assert isinstance(ids, np.ndarray)
    assert ids.dtype == "int32"


@pytest.mark.parametrize("text", ["a b", f"a{SPACE}b"])
def test_options_of_sentence_piece_tokenizer(text):
    plain = ids_of(tiny.tokenizer(), text)
    both = tiny.tokenizer(add_bos=True, add_eos=True)
    assert ids_of(both, text) == [2, *plain, 1]
    fixed = tiny.tokenizer(sequence_length=8)
    assert ids_of(fixed, text) == plain + [0] * (8 - len(plain))
    cut = tiny.tokenizer(sequence_length=1)
    assert ids_of(cut, text) == plain[:1]
    pieces = tiny.tokenizer(dtype="string")
    assert list(pieces(text)) == [pieces.id_to_token(id) for id in plain]


@pytest.mark.parametrize("text", TEXTS + MARKED)
def test_tf_data_gives_the_same_ids(tokenizer, text):
    dataset = tf.data.Dataset.from_tensor_slices([text]).map(tokenizer)
    assert list(next(dataset.as_numpy_iterator())) == ids_of(tokenizer, text)


def test_tf_data_in_batches(tokenizer):
    dataset = tf.data.Dataset.from_tensor_slices(TEXTS).batch(len(TEXTS))
    (ids,) = list(dataset.map(tokenizer))
    assert ids.to_list() == [ids_of(tokenizer, text) for text in TEXTS]
    (texts,) = list(dataset.map(tokenizer).map(tokenizer.detokenize).as_numpy_iterator())
    assert [text.decode() for text in texts] == TEXTS


def test_eager_tensorflow_workflow_gives_the_same_ids(tokenizer):
    eager = tiny.tokenizer(_allow_python_workflow=False)
    assert [[int(id) for id in row] for row in eager(TEXTS)] == [
        ids_of(tokenizer, text) for text in TEXTS
    ]


def test_a_vocabulary_that_adds_a_space_in_front_is_left_alone():
    """Split at U+2581, each part would get a space of its own."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(tiny.SENTENCES),
        model_writer=model,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        **{f"{name}_id": id for name, id in tiny.CONTROL_IDS.items()},
        **{f"{name}_piece": f"<{name}>" for name in tiny.CONTROL_IDS},
        minloglevel=2,
    )
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ours = RGemmaTokenizer(proto=model.getvalue())
    text = f"a{SPACE}b {SPACE}c"
    assert ids_of(ours, text) == theirs.Encode(text)
    assert ours.detokenize(ours(text)) == theirs.Decode(theirs.Encode(text))


def test_second_end_token_where_the_vocabulary_has_it(tokenizer, without_end_of_turn):
    assert hasattr(tokenizer, "end_token2_id")
    assert not hasattr(without_end_of_turn, "end_token2_id")
    with pytest.raises(AttributeError, match="end_token2_id"):
        _ = without_end_of_turn.end_token2_id
    assert without_end_of_turn.end_token_id == 1
    assert without_end_of_turn.token_to_id("<start_of_turn>") == 4
    assert 4 in ids_of(without_end_of_turn, "<start_of_turn>a<end_of_turn>")
    assert without_end_of_turn.detokenize(without_end_of_turn("a<end_of_turn>")) == "a<end_of_turn>"


def test_another_vocabulary_replaces_the_second_end_token(without_end_of_turn):
    tokenizer = tiny.tokenizer()
    tokenizer.set_proto(without_end_of_turn.proto)
    assert not hasattr(tokenizer, "end_token2_id")
    tokenizer.set_proto(tiny.proto())
    assert tokenizer.end_token2_id == 5


def test_a_vocabulary_without_bos_is_refused():
    with pytest.raises(ValueError, match="<bos>"):
        RGemmaTokenizer(proto=tiny.proto(bos=False))


def test_without_a_vocabulary_it_says_so():
    with pytest.raises(ValueError, match="proto"):
        RGemmaTokenizer()("text")


def test_configs_survive_a_round_trip():
    tokenizer = tiny.tokenizer(add_eos=True, sequence_length=9, name="mine")
    config = tokenizer.get_config()
    revived = RGemmaTokenizer.from_config(json.loads(json.dumps(config)))
    assert revived.get_config() == config
    serialized = json.loads(json.dumps(keras.saving.serialize_keras_object(tokenizer)))
    assert serialized["registered_name"] == "keras_rgemma>RGemmaTokenizer"
    revived = keras.saving.deserialize_keras_object(serialized)
    assert type(revived) is RGemmaTokenizer
    assert revived.get_config() == config
    # What a saved model does next: the vocabulary comes from a file beside the config.
    assert not hasattr(revived, "end_token2_id")
    revived.set_proto(tokenizer.proto)
    assert revived.end_token2_id == 5
    assert set(vars(revived)) == set(vars(tokenizer))


def test_assets_hold_the_vocabulary(tokenizer, tmp_path):
    tokenizer.save_assets(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["vocabulary.spm"]
    assert (tmp_path / "vocabulary.spm").read_bytes() == tiny.proto()
    revived = RGemmaTokenizer()
    revived.load_assets(str(tmp_path))
    assert revived.end_token2_id == 5
    assert ids_of(revived, MARKED[1]) == ids_of(tokenizer, MARKED[1])
    from_path = RGemmaTokenizer(proto=str(tmp_path / "vocabulary.spm"))
    assert from_path.get_vocabulary() == tokenizer.get_vocabulary()


def test_copies_and_pickles_tokenize_alike(tokenizer):
    # A process of a data loader gets its tokenizer this way.
    copy = pickle.loads(pickle.dumps(tokenizer))
    for text in TEXTS + MARKED:
        assert ids_of(copy, text) == ids_of(tokenizer, text)
    assert copy.end_token2_id == 5


def test_it_is_the_tokenizer_of_the_model():
    assert RGemmaTokenizer.backbone_cls is keras_rgemma.RGemmaBackbone
    assert keras_rgemma.RGemmaCausalLMPreprocessor.tokenizer_cls is RGemmaTokenizer
