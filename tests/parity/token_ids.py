"""Compares the token ids of Hugging Face's tokenizers with ours of the same tokenizer.json.

    PYTHONPATH=tests python tests/parity/token_ids.py [FOLDER ...] [--count 10000] [--seed 0]

A FOLDER holds a tokenizer.json. Without one, those of `FORMS` are made: what transformers saves for
the tokenizers of the embedded preset and of tests/tiny.py, with tokens that a fine-tune adds, and a
file of the form that Gemma's own have. The texts hold every script, control characters, emoji, odd
spaces, control tokens and their halves, and pieces of the vocabulary in any order. The command ends
with 1 if an id differs, and prints the smallest text that shows it.

One rule is ours alone: a U+2581 in a text stays that character and is spelled with its bytes, so it
is compared with Hugging Face's ids of the text around it.

Its result with transformers 5.23.0, tokenizers 0.23.3 and sentencepiece 0.2.3:

    the embedded preset's: 10,000 texts, ids equal
    the embedded preset's, with added tokens: 10,000 texts, ids equal
    a tiny one: 10,000 texts, ids equal
    a tiny one with added tokens: 10,000 texts, ids equal
    a tiny one of Gemma's form: 10,000 texts, ids equal
"""

import argparse
import functools
import itertools
import json
import pathlib
import random
import sys
import tempfile
import unicodedata

import sentencepiece
import transformers
from transformers.convert_slow_tokenizer import generate_merges

import keras_rgemma
import tiny
from keras_rgemma.checkpoints.huggingface import write_tokenizer_config

SPACE = "\u2581"
SPACE_BYTES = ["<0xE2>", "<0x96>", "<0x81>"]
ODD_SPACES = ["\xa0", "\u2003", "\u3000", "\u200b", "\u2028", "\x85", "\ufeff", "\r\n", "\t", "\v"]
EMOJI = ["😀", "👩‍👩‍👧", "🇩🇪", "👍🏽", "❤️", "1️⃣", "🏴󠁧󠁢󠁥󠁮󠁧󠁿"]
CONTROLS = [chr(i) for i in (*range(32), *range(127, 160))]
WORDS = " ".join(tiny.SENTENCES).split()
TOKENS = ["<tool>", "<|im_end|>", "two words", " zebra", "hello"]
SPECIAL_TOKENS = ["<tool_call>", "</tool_call>", "§§"]


# === The files ===


def save(folder, tokenizer, tokens=(), special_tokens=()):
    """Saves an `RGemmaTokenizer` as a fine-tune of transformers does; returns theirs.

    Args:
        folder: `pathlib.Path`.
        tokenizer: `RGemmaTokenizer`.
        tokens, special_tokens: sequences of str, the tokens that the fine-tune adds.
    """
    with tempfile.TemporaryDirectory() as exported:
        exported = pathlib.Path(exported)
        (exported / "tokenizer.model").write_bytes(tokenizer.proto)
        write_tokenizer_config(exported, tokenizer)
        theirs = transformers.AutoTokenizer.from_pretrained(exported)
        theirs.add_tokens(list(tokens))
        theirs.add_tokens(list(special_tokens), special_tokens=True)
        theirs.save_pretrained(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


def save_as_google(folder):
    """Saves a tokenizer.json of the form of Gemma's own: runs of spaces are made by merges."""
    runs = [character * n for character in (SPACE, "\n") for n in range(2, 9)]
    model = tiny.proto(further_tokens=(*runs, "<table>", "\t\t", "\n"))
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    ids = list(range(processor.GetPieceSize()))
    vocab = {processor.IdToPiece(id): id for id in ids}
    scores = {piece: processor.GetScore(id) for piece, id in vocab.items()}
    vocab["\t"], scores["\t"] = vocab.pop("<0x09>"), scores.pop("<0x09>")
    special = ("<pad>", "<eos>", "<bos>", "<unk>", *tiny.TURNS)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    contents = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": vocab[token], "content": token, **flags, "special": True} for token in special
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": [" ".join(pair) for pair in generate_merges(vocab, scores)],
        },
    }
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(contents))
    config = {"tokenizer_class": "GemmaTokenizer", "mask_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return transformers.AutoTokenizer.from_pretrained(folder)


def embedded():
    return keras_rgemma.RGemmaTokenizer.from_preset("rgemma_tiny_en")


FORMS = {
    "the embedded preset's": lambda folder: save(folder, embedded()),
    "the embedded preset's, with added tokens": lambda folder: save(
        folder, embedded(), TOKENS, SPECIAL_TOKENS
    ),
    "a tiny one": lambda folder: save(folder, tiny.tokenizer()),
    "a tiny one with added tokens": lambda folder: save(
        folder, tiny.tokenizer(), TOKENS, SPECIAL_TOKENS
    ),
    "a tiny one of Gemma's form": save_as_google,
}


# === The texts ===


@functools.cache
def scripts():
    """Lists of the assigned characters among 128 neighbours each, of all scripts."""
    groups = (map(chr, range(start, start + 128)) for start in range(0, 0x110000, 128))
    skipped = ("Cn", "Cs", "Co")  # not assigned, surrogates, private
    groups = ([x for x in group if unicodedata.category(x) not in skipped] for group in groups)
    return [group for group in groups if group]


def texts(count, seed, pieces, tokens):
    """Makes texts; with `count` of 2,000 or more every script is in one of them.

    Args:
        count: int.
        seed: int.
        pieces: list of str, tokens of the vocabulary.
        tokens: list of str, tokens that are recognised in text.
    """
    chance = random.Random(seed)
    pieces = [piece.replace(SPACE, " ") for piece in pieces]
    alphabets = chance.sample(scripts(), len(scripts()))

    def some(values, most):
        return [chance.choice(values) for _ in range(chance.randint(1, most))]

    def piece_of(token):
        start = chance.randrange(len(token))
        return token[start : chance.randint(start + 1, len(token))]

    def period():
        return "".join(some(pieces, 2))[: chance.randint(1, 4)]

    kinds = [
        lambda: " ".join(some(WORDS, 8)),
        lambda: chance.choice([" ", "\n", "\t", "a", "-", SPACE]) * chance.randint(1, 70),
        lambda: "".join(some([*ODD_SPACES, " "], 5)),
        lambda: "".join(some(CONTROLS, 5)),
        lambda: "".join(some(EMOJI, 4)),
        lambda: "".join(some(tokens, 3)),
        lambda: "".join(map(piece_of, some(tokens, 3))),
        lambda: "".join(some([SPACE, " ", "a"], 5)),
        lambda: "".join(some(pieces, 8)),
        lambda: period() * chance.randint(2, 12),
        lambda: str(chance.randrange(10 ** chance.randint(1, 20))),
    ]
    made = []
    for alphabet in itertools.islice(itertools.cycle(alphabets), count):
        parts = ["".join(some(alphabet, 12)), *(kind() for kind in some(kinds, 5))]
        chance.shuffle(parts)
        made.append(chance.choice(["", " "]).join(parts))
    return made


# === The comparison ===


def expected_ids(theirs, text):
    """Their ids of a text, with the bytes of each U+2581 in it."""
    spelled = theirs.convert_tokens_to_ids(SPACE_BYTES)
    parts = theirs(text.split(SPACE), add_special_tokens=False)["input_ids"]
    return [id for ids in parts for id in (*spelled, *ids)][len(spelled) :]


def smallest(text, is_wrong):
    """Leaves out as much of a text as can be while it is still wrong."""
    size = len(text)
    while size:
        for start in range(len(text) - size + 1):
            shorter = text[:start] + text[start + size :]
            if is_wrong(shorter):
                text = shorter
                break
        else:
            size = min(size - 1, len(text) - 1)
    return text


def compare(folder, theirs, count, seed):
    """Returns the smallest text of different ids and both lists of ids, or None."""
    ours = keras_rgemma.RGemmaTokenizer.from_preset(str(folder))
    tokens = [str(token) for token in theirs.added_tokens_decoder.values()]
    made = texts(count, seed, list(theirs.get_vocab()), tokens)
    for text, ids in zip(made, ours.token_id_rows(made), strict=True):
        if list(ids) != expected_ids(theirs, text):
            text = smallest(text, lambda x: ours.token_id_rows([x])[0] != expected_ids(theirs, x))
            return text, ours.token_id_rows([text])[0], expected_ids(theirs, text)
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="*", metavar="FOLDER")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    forms = {folder: lambda _, folder=folder: None for folder in args.folders} or FORMS
    is_equal = True
    for name, make in forms.items():
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder if forms is FORMS else name)
            theirs = make(folder) or transformers.AutoTokenizer.from_pretrained(folder)
            difference = compare(folder, theirs, args.count, args.seed)
        found = "equal"
        if difference:
            found = "different: text {!r}, ours {}, theirs {}".format(*difference)
        print(f"{name}: {args.count:,} texts, ids {found}")
        is_equal = is_equal and not difference
    sys.exit(not is_equal)


if __name__ == "__main__":
    main()
