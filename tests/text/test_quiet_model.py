"""A SentencePiece model that loads without a line on the terminal is the same model."""

import functools
import io

import keras
import pytest
import sentencepiece
import tensorflow as tf
import tensorflow_text

import keras_rgemma
import tiny
from backend_independent import backend_independent
from keras_rgemma.text.quiet_model import with_table

TEXTS = [
    "The quick brown fox.",
    "",
    "  leading, trailing  ",
    "café naïve £5 ½ ﬁ \u212b e\u0301",  # characters that Unicode's normal forms would change
    "日本語のテキスト 😀👩‍👩‍👧",
    "\x00\x01\x7f\u200b\ufeff\ufffd\u2581",
    "<start_of_turn>user\nHi<end_of_turn>\n",
    "".join(map(chr, range(1, 256))),
]


@functools.cache
def proto_with_rules():
    """The bytes of a model that normalizes text."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(tiny.SENTENCES),
        model_writer=model,
        vocab_size=100,
        normalization_rule_name="nfkc",
        minloglevel=2,
    )
    return model.getvalue()


def test_a_tokenizer_loads_and_works_without_a_word(capfd):
    tokenizer = keras_rgemma.RGemmaTokenizer(tiny.proto())
    assert tokenizer.detokenize(tokenizer("The quick")) == "The quick"
    (ids,) = tf.data.Dataset.from_tensors(["The quick"]).map(tokenizer)  # in a graph
    assert ids.to_list() == [[int(id) for id in tokenizer("The quick")]]
    assert capfd.readouterr() == ("", "")


def test_the_model_is_saved_as_it_came():
    assert keras_rgemma.RGemmaTokenizer(tiny.proto()).proto == tiny.proto()


@backend_independent
@pytest.mark.parametrize("proto", [tiny.proto, proto_with_rules])
def test_the_ids_are_the_same(proto):
    before, after = (
        sentencepiece.SentencePieceProcessor(model_proto=x) for x in (proto(), with_table(proto()))
    )
    assert before.Encode(TEXTS) == after.Encode(TEXTS)
    assert before.Decode(before.Encode(TEXTS)) == after.Decode(after.Encode(TEXTS))
    before, after = (
        tensorflow_text.SentencepieceTokenizer(x) for x in (proto(), with_table(proto()))
    )
    assert before.tokenize(TEXTS).to_list() == after.tokenize(TEXTS).to_list()


@backend_independent
def test_what_has_rules_or_is_no_model_stays():
    assert with_table(proto_with_rules()) == proto_with_rules()
    quiet = with_table(tiny.proto())
    assert quiet != tiny.proto() and with_table(quiet) == quiet
    for broken in (b"no model", tiny.proto()[:-5], b"\x1a\xff", b"\x0b"):
        assert with_table(broken) == broken


@pytest.mark.skipif(keras.config.backend() == "tensorflow", reason="it computes with TensorFlow")
def test_text_alone_makes_no_processor_of_tensorflow():
    tokenizer = keras_rgemma.RGemmaTokenizer(tiny.proto())
    tokenizer(["a", "b"])
    assert tokenizer._sentence_piece is None
