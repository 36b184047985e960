"""A tokenizer.json gives Hugging Face's ids and loads as any other, or is refused by name."""

import json
import pickle
import shutil

import pytest
import sentencepiece
import tensorflow as tf
import transformers
from sentencepiece import sentencepiece_model_pb2

import tiny
from backend_independent import backend_independent
from keras_rgemma import RGemmaCausalLM, RGemmaTokenizer
from keras_rgemma.checkpoints import sentencepiece_model
from parity import token_ids

SPACE = token_ids.SPACE
EVERYTHING = (
    f"<bos>a <eos>{SPACE}b<pad> <unk>\n\n  c\t<tool> two words<tool_call>hello §§ zebra<|im_end|>"
    f"<start_of_turn>user<end_of_turn> {SPACE} <bo <unk 日本 😀\x00"
)
# A tokenizer with added tokens has 400 + 8 of them.
ADDED = len(token_ids.TOKENS + token_ids.SPECIAL_TOKENS)


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    """Folders with a tokenizer.json, and transformers' tokenizer of each, by their names."""
    made = {}
    for name, make in token_ids.FORMS.items():
        folder = tmp_path_factory.mktemp("form")
        made[name] = folder, make(folder)
    return made


@pytest.fixture
def added(forms, tmp_path):
    """A copy of the folder of a tokenizer with added tokens."""
    folder, _ = forms["a tiny one with added tokens"]
    return shutil.copytree(folder, tmp_path / "added")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a model of 408 tokens without a tokenizer, as transformers saves it."""
    folder = tmp_path_factory.mktemp("model")
    lm = tiny.randomize(tiny.causal_lm(None, vocabulary_size=400 + ADDED))
    lm.export_to_transformers(folder)
    return folder


def change(folder, edit):
    path = folder / "tokenizer.json"
    contents = json.loads(path.read_text())
    edit(contents)
    path.write_text(json.dumps(contents))


# === Ids ===


@backend_independent
@pytest.mark.parametrize("name", token_ids.FORMS)
def test_ids_are_hugging_faces(forms, name):
    folder, theirs = forms[name]
    assert token_ids.compare(folder, theirs, count=300, seed=1) is None


@backend_independent
def test_the_comparison_notices_another_id(forms):
    _, theirs = forms["a tiny one with added tokens"]
    other, _ = forms["a tiny one"]
    text, ours, expected = token_ids.compare(other, theirs, count=300, seed=1)
    assert text in token_ids.TOKENS + token_ids.SPECIAL_TOKENS
    assert list(ours) != expected


@backend_independent
@pytest.mark.parametrize("name", token_ids.FORMS)
def test_graphs_give_the_same_ids(forms, name):
    folder, theirs = forms[name]
    tokenizer = RGemmaTokenizer.from_preset(str(folder))
    dataset = tf.data.Dataset.from_tensor_slices(["", EVERYTHING, "a b"]).batch(2).map(tokenizer)
    rows = [row for batch in dataset for row in batch.to_list()]
    assert rows == [token_ids.expected_ids(theirs, text) for text in ("", EVERYTHING, "a b")]


@backend_independent
@pytest.mark.parametrize("name", token_ids.FORMS)
def test_text_comes_back_but_for_the_tokens_without_text(forms, name):
    folder, theirs = forms[name]
    tokenizer = RGemmaTokenizer.from_preset(str(folder))
    text = EVERYTHING
    for token in ("<bos>", "<eos>", "<pad>"):
        text = text.replace(token, "")
    assert tokenizer.detokenize(tokenizer(EVERYTHING)) == text
    ids = tokenizer.literal_token_ids(EVERYTHING)
    assert tokenizer.detokenize(ids) == EVERYTHING
    special = {theirs.convert_tokens_to_ids(token) for token in tokenizer.control_tokens}
    assert special >= {0, 1, 2, 3}
    assert not special & set(ids)


@backend_independent
def test_long_runs_of_spaces_are_cut_as_hugging_face_does(forms):
    folder, theirs = forms["a tiny one of Gemma's form"]
    tokenizer = RGemmaTokenizer.from_preset(str(folder))
    for count in range(1, 40):
        for text in (" " * count + "the", "a" + "\n" * count + " b", " \n" * count):
            assert list(tokenizer(text)) == token_ids.expected_ids(theirs, text)


@backend_independent
def test_a_model_is_written_as_sentencepiece_writes_it():
    ours = sentencepiece_model_pb2.ModelProto.FromString(tiny.proto())
    pieces = [sentencepiece_model.Piece(p.piece, p.type, p.score) for p in ours.pieces]
    serialized = sentencepiece_model.serialize(pieces)
    read = sentencepiece_model_pb2.ModelProto.FromString(serialized)
    assert [sentencepiece_model.Piece(p.piece, p.type, p.score) for p in read.pieces] == pieces
    normalizer, trainer = read.normalizer_spec, read.trainer_spec
    for name in ("add_dummy_prefix", "remove_extra_whitespaces", "escape_whitespaces"):
        assert getattr(normalizer, name) == getattr(ours.normalizer_spec, name)
    for name in ("model_type", "vocab_size", "byte_fallback"):
        assert getattr(trainer, name) == getattr(ours.trainer_spec, name)
    for name in ("unk", "bos", "eos", "pad"):
        for part in (f"{name}_id", f"{name}_piece"):
            assert getattr(trainer, part) == getattr(ours.trainer_spec, part)
    assert trainer.unk_surface == "<unk>"
    for model in (tiny.proto(), serialized):
        assert sentencepiece_model.kinds_of(model) == [piece.type for piece in ours.pieces]
    found = sentencepiece.SentencePieceProcessor(model_proto=serialized)
    assert found.Encode(tiny.SENTENCES[0]) == list(tiny.tokenizer()(tiny.SENTENCES[0]))


# === Where a tokenizer is found ===


@backend_independent
def test_it_is_copied_as_any_other(added, forms):
    _, theirs = forms["a tiny one with added tokens"]
    expected = token_ids.expected_ids(theirs, EVERYTHING)
    tokenizer = RGemmaTokenizer.from_preset(str(added))
    copies = [
        RGemmaTokenizer.from_config({**tokenizer.get_config(), "proto": tokenizer.proto}),
        pickle.loads(pickle.dumps(tokenizer)),
    ]
    for copy in copies:
        assert copy.control_tokens == tokenizer.control_tokens
        assert list(copy(EVERYTHING)) == expected
    assert "control_tokens" not in tiny.tokenizer().get_config()


@backend_independent
def test_both_files_of_one_tokenizer_are_read_as_before(forms, tmp_path):
    folder, _ = forms["a tiny one"]
    shutil.copytree(folder, tmp_path / "both")
    (tmp_path / "both" / "tokenizer.model").write_bytes(tiny.proto())
    tokenizer = RGemmaTokenizer.from_preset(str(tmp_path / "both"))
    assert tokenizer.proto == tiny.proto()
    assert tokenizer.control_tokens == ()


@backend_independent
def test_of_two_files_that_differ_tokenizer_json_counts(added):
    (added / "tokenizer.model").write_bytes(tiny.proto())
    tokenizer = RGemmaTokenizer.from_preset(str(added))
    assert tokenizer.vocabulary_size() == 400 + ADDED
    assert list(tokenizer("<tool>")) == [400]


@backend_independent
def test_a_damaged_model_beside_it_is_named(added):
    (added / "tokenizer.model").write_bytes(b"\x00nothing")
    with pytest.raises(ValueError, match=r"tokenizer\.model.*cannot be read"):
        RGemmaTokenizer.from_preset(str(added))


def test_the_mask_that_transformers_adds_needs_no_embedding(forms, model, tmp_path):
    folder, _ = forms["a tiny one"]
    preset = shutil.copytree(model, tmp_path / "preset")
    shutil.copy(folder / "tokenizer.json", preset)
    mask = {"id": 400, "content": "<mask>", "special": True, "normalized": False}
    change(preset, lambda x: x["added_tokens"].append(mask))
    config = json.loads((preset / "config.json").read_text())
    assert RGemmaTokenizer.from_preset(str(preset)).vocabulary_size() == 401
    (preset / "config.json").write_text(json.dumps({**config, "vocab_size": 400}))
    tokenizer = RGemmaTokenizer.from_preset(str(preset))
    assert tokenizer.vocabulary_size() == 400
    assert tokenizer.detokenize(tokenizer("<mask>")) == "<mask>"
    change(preset, lambda x: x["added_tokens"].append({**mask, "id": 401, "content": "<tool>"}))
    for cls in (RGemmaTokenizer, RGemmaCausalLM):
        with pytest.raises(ValueError, match=r"'<tool>' has the id 401.*400 embeddings.*resize"):
            cls.from_preset(str(preset))


def test_a_fine_tune_with_added_tokens_writes_chats_and_learns(added, model, tmp_path):
    preset = shutil.copytree(model, tmp_path / "preset")
    shutil.copy(added / "tokenizer.json", preset)
    lm = RGemmaCausalLM.from_preset(str(preset))
    assert lm.generate("The <tool>", max_new_tokens=2).startswith("The <tool>")
    assert lm.chat(max_new_tokens=2).send("Hi <tool_call>") is not None
    history = lm.fit(["The <tool> is <tool_call>hello</tool_call>"], verbose=0)
    assert history.history["loss"][0] > 0
    lm.save_to_preset(tmp_path / "saved")
    lm.export_to_transformers(tmp_path / "exported")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported")
    text = EVERYTHING.replace(SPACE, "")
    expected = transformers.AutoTokenizer.from_pretrained(added)(text)["input_ids"]
    assert theirs(text)["input_ids"] == expected
    saved = RGemmaCausalLM.from_preset(str(tmp_path / "saved")).preprocessor.tokenizer
    for tokenizer in (saved, RGemmaTokenizer.from_preset(str(tmp_path / "saved"))):
        assert tokenizer.control_tokens == lm.preprocessor.tokenizer.control_tokens
        assert list(tokenizer(text)) == expected[1:]


# === What is refused ===

REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}


def sequence(*normalizers):
    return {"type": "Sequence", "normalizers": normalizers}


REFUSED = {
    "a normalizer": (lambda x: x.update(normalizer={"type": "NFC"}), "`normalizer` is.*'NFC'"),
    "no normalizer": (lambda x: x.update(normalizer=None), "`normalizer` is None"),
    "two normalizers": (
        lambda x: x.update(normalizer=sequence(REPLACE, {"type": "Lowercase"})),
        "`normalizer` is.*Lowercase",
    ),
    "a prefix": (
        lambda x: x.update(normalizer=sequence({"type": "Prepend", "prepend": SPACE}, REPLACE)),
        "`normalizer` is.*Prepend",
    ),
    "a pre-tokenizer": (
        lambda x: x.update(pre_tokenizer={"type": "ByteLevel"}),
        "`pre_tokenizer` is.*ByteLevel",
    ),
    "a decoder": (
        lambda x: x["decoder"]["decoders"].append({"type": "Strip", "content": " "}),
        "`decoder` is.*Strip",
    ),
    "a model": (
        lambda x: x["model"].update(type="WordPiece"),
        "`model.type` is 'WordPiece'.*'BPE'",
    ),
    "unigrams": (lambda x: x["model"].update(type="Unigram", vocab=[["a", 0]]), "'Unigram'"),
    "no bytes": (
        lambda x: x["model"].update(byte_fallback=False),
        "`model.byte_fallback` is False",
    ),
    "a lost byte": (
        lambda x: x["model"]["vocab"].update({"<A>": x["model"]["vocab"].pop("<0x41>")}),
        "`model.byte_fallback`.*no '<0x41>'",
    ),
    "dropout": (lambda x: x["model"].update(dropout=0.1), "`model.dropout` is 0.1"),
    "a prefix of subwords": (
        lambda x: x["model"].update(continuing_subword_prefix="##"),
        "continuing_subword_prefix` is '##'",
    ),
    "a suffix of words": (
        lambda x: x["model"].update(end_of_word_suffix="</w>"),
        "end_of_word_suffix` is '</w>'",
    ),
    "ignored merges": (lambda x: x["model"].update(ignore_merges=True), "ignore_merges` is True"),
    "a new setting": (lambda x: x["model"].update(magic=3), "`model.magic` is 3"),
    "no unknown token": (lambda x: x["model"].update(unk_token=None), "`model.unk_token` is None"),
    "no model": (lambda x: x.update(model="BPE"), "`model` is 'BPE'"),
    "no vocabulary": (lambda x: x["model"].pop("vocab"), r"`model\.vocab` must be"),
    "no merges": (lambda x: x["model"].pop("merges"), "`model.merges` is None"),
    "half a merge": (lambda x: x["model"]["merges"].append(["a"]), r"`model.merges` is \('a',\)"),
    "a merge of nothing": (
        lambda x: x["model"]["merges"].append(["a", "<zzz>"]),
        r"`model.merges` is \('a', '<zzz>'\)",
    ),
    "a lost merge": (lambda x: x["model"]["merges"].pop(5), "`model.merges` lacks.*always joins"),
    "merges in another order": (
        lambda x: x["model"]["merges"].sort(key=lambda pair: len(pair[1])),
        "`model.merges` prefers some pairs",
    ),
    "a gap": (
        lambda x: x["added_tokens"][-1].update(id=500),
        "the token '§§' is 500, and no token has the id 407",
    ),
    "another id": (lambda x: x["added_tokens"][1].update(id=7), "added token '<eos>' is 7.* 1"),
    "a token without a text": (
        lambda x: x["added_tokens"][-1].update(content=""),
        "`added_tokens` is.*407",
    ),
    "a token of two texts": (
        lambda x: x["added_tokens"][-1].update(content=" in"),
        f"are both '{SPACE}in'",
    ),
    "tokens that overlap": (
        lambda x: x["added_tokens"][-1].update(content="l><b", normalized=True),
        "may overlap",
    ),
    "a token of a byte": (
        lambda x: x["added_tokens"].append({"id": 65 + 6, "content": "<0x41>"}),
        "'<0x41>'",
    ),
    **{
        flag: (
            lambda x, flag=flag: x["added_tokens"][-1].update({flag: True}),
            f"`{flag}` of the added token `§§` is True",
        )
        for flag in ("single_word", "lstrip", "rstrip")
    },
}


@backend_independent
@pytest.mark.parametrize("name", REFUSED)
def test_what_sentencepiece_cannot_express_is_refused_by_name(added, name):
    edit, message = REFUSED[name]
    change(added, edit)
    with pytest.raises(ValueError, match=f"(?s)tokenizer.json.*{message}.*preprocessor=None"):
        RGemmaTokenizer.from_preset(str(added))


def test_the_way_out_of_a_refusal_works(added, model, tmp_path):
    preset = shutil.copytree(model, tmp_path / "preset")
    change(added, REFUSED["dropout"][0])
    shutil.copy(added / "tokenizer.json", preset)
    with pytest.raises(ValueError, match="dropout"):
        RGemmaCausalLM.from_preset(str(preset))
    lm = RGemmaCausalLM.from_preset(str(preset), preprocessor=None)
    assert lm.preprocessor is None


@backend_independent
def test_a_file_that_is_no_json_is_named(added):
    (added / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match=r"tokenizer\.json.*cannot be read as JSON"):
        RGemmaTokenizer.from_preset(str(added))
