"""Make the training data and the tokenizer of the embedded preset `rgemma_tiny_en`.

    apt-get install wordnet-base bible-kjv bible-kjv-text
    pip install wordfreq==3.1.1
    python examples/train_rgemma_tiny/prepare.py --out build/rgemma_tiny_en

Two sources, both free to use (their licences: presets/rgemma_tiny_en/LICENSES.md): WordNet's
glosses as questions and answers in Gemma's instruction format, and the King James Bible as plain
text, one chapter a document. Writes tokenizer.model; train.npy, heldout.npy, heldout_wordnet.npy
and heldout_bible.npy, flat uint16 streams of `<bos> document <eos>`; common.npy, those documents
of train.npy that ask for words of everyday life, nouns four times, with a third of the Bible;
talk.npy, the 2,100 commonest words in many phrasings, without what is held out; quiz.json, the
questions of quiz.py; and stats.json. The result depends on the sources alone. With wordnet-base
1:3.0-37, bible-kjv-text 4.38, sentencepiece 0.2.3 and wordfreq 3.1.1, which chooses the words, it
takes half a minute and prints

    split    source   documents   tokens     bytes  bytes/token
    train    wordnet     115299  5325514  20861909         3.92
    train    bible         1168  1114368   4061587         3.64
    heldout  wordnet       2357   109614    427988         3.90
    heldout  bible           21    20024     75071         3.75

BPE is the default because it is the denser: a unigram model makes 3.67 and 3.59 bytes a token of
the held-out documents. Bytes include the turn markers, tokens include <bos> and <eos>.
"""

import argparse
import io
import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import sentencepiece
from quiz import make_quiz
from sentencepiece import sentencepiece_model_pb2
from wordnet import LIGHTHOUSE, digest, questions_and_answers, read_synsets
from words import capitals, common_words, talk

PACKAGES = "wordnet-base bible-kjv bible-kjv-text"
SOURCES = ("wordnet", "bible")
TURNS = "<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n{}<end_of_turn>\n"
ALWAYS_TRAINED = {"What is a lighthouse?", "Ge 1"}
HELDOUT_EVERY = 50  # 2 % of the documents
ASKED = re.compile(r'What (?:is (an? )?|does it mean to |does ")([a-z]+)(?:\?|" mean.*)')


class Document(NamedTuple):
    """A text, where it comes from, and the name by which the splits are made."""

    source: str
    key: str
    text: str

    @property
    def split(self):
        """`train` or `heldout`, by the name alone."""
        chosen = self.key not in ALWAYS_TRAINED and digest(self.key) % HELDOUT_EVERY == 0
        return "heldout" if chosen else "train"


def wordnet_documents(folder):
    """One document a synset, in the instruction format; one question stays in one split."""
    pairs = questions_and_answers(folder)
    return [Document("wordnet", question, TURNS.format(question, a)) for question, a in pairs]


def bible_documents():
    """One document a chapter, one line a verse, without numbers and headings."""
    # -f turns the pretty printing off: each verse on one line, after its reference, "Ge1:1 In the".
    command = ["bible", "-f", "gen1:1-rev22:21"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    verses = [re.fullmatch(r"(\d?[A-Za-z]+)(\d+):\d+ (.*)", line).groups() for line in lines]
    chapters = itertools.groupby(verses, key=lambda verse: f"{verse[0]} {verse[1]}")
    return [
        Document("bible", name, "\n".join(" ".join(verse[2].split()) for verse in group))
        for name, group in chapters
    ]


def common_documents(documents, folder):
    """Training documents about words that occur in WordNet's own corpus, and some of the Bible."""
    counts = (folder / "cntlist.rev").read_text(encoding="utf-8").splitlines()
    words = {line.partition("%")[0] for line in counts} | {LIGHTHOUSE}
    chosen = []
    for document in documents:
        asked = ASKED.fullmatch(document.key)
        if asked and asked[2] in words:
            chosen += [document] * (4 if asked[1] else 1)
        elif document.source == "bible" and digest(document.key) % 3 == 0:
            chosen.append(document)
    repeated = sorted((digest(f"{i}{x.text}"), i, x) for i, x in enumerate(chosen))
    return [document for _, _, document in repeated]


def talk_documents(folder, held_out):
    """The common words, and documents that ask for them in many phrasings, in a mixed order.

    What a held-out document says is in none of them.
    """
    synsets = list(read_synsets(folder))
    words = common_words(folder, synsets, held_out)
    pairs = sorted(
        (digest(f"{i}{question}"), question, answer)
        for i, (question, answer) in enumerate(talk(words, capitals(synsets, held_out)))
    )
    return words, [Document("talk", q, TURNS.format(q, a)) for _, q, a in pairs]


def train_tokenizer(texts, model_type):
    """A SentencePiece model with Gemma's special ids, as bytes, in which no path is recorded."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type=model_type,
        vocab_size=4096,
        character_coverage=1.0,  # the sources are ASCII; bytes stand for all other characters
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        byte_fallback=True,
        split_digits=True,
        max_sentence_length=1 << 20,  # longer than any chapter: by default they would be left out
        **{"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3},
        **{f"{name}_piece": f"<{name}>" for name in ("pad", "eos", "bos", "unk")},
        # As in Gemma a newline is one token, never part of another: the ids of a prompt that
        # ends in "model\n" are the first ids of its whole document, whatever the answer says.
        user_defined_symbols=["<start_of_turn>", "<end_of_turn>", "\n"],
        num_threads=2,  # a fixed number, for the same sums on every machine
        minloglevel=1,
    )
    proto = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())
    for name in ("input", "model_prefix", "num_threads", "max_sentence_length"):
        proto.trainer_spec.ClearField(name)
    return proto.SerializeToString(deterministic=True)


def token_stream(tokenizer, documents):
    """All documents as `<bos> ... <eos>`, one after another, in uint16."""
    ids = tokenizer.encode([document.text for document in documents], add_bos=True, add_eos=True)
    return np.fromiter(itertools.chain.from_iterable(ids), dtype="uint16")


def write(documents, out, model_type, folder):
    """Write the tokenizer, the streams and stats.json, and return what the last one says."""
    documents = sorted(documents, key=lambda document: digest(document.text))
    splits = {s: [d for d in documents if d.split == s] for s in ("train", "heldout")}
    model = train_tokenizer([document.text for document in splits["train"]], model_type)
    tokenizer = sentencepiece.SentencePieceProcessor(model_proto=model)
    out.mkdir(parents=True, exist_ok=True)
    (out / "tokenizer.model").write_bytes(model)
    common = token_stream(tokenizer, common_documents(splits["train"], folder))
    np.save(out / "common.npy", common)
    held_out = "\n".join(document.text for document in splits["heldout"])
    words, talks = talk_documents(folder, held_out)
    np.save(out / "talk.npy", token_stream(tokenizer, talks))
    (out / "quiz.json").write_text(json.dumps(make_quiz(words), indent=1) + "\n")
    stats = {"tokenizer": {"model_type": model_type, "vocabulary_size": len(tokenizer)}}
    for split, members in splits.items():
        np.save(out / f"{split}.npy", token_stream(tokenizer, members))
        stats[split] = {}
        for source in SOURCES:
            of_source = [document for document in members if document.source == source]
            stream = token_stream(tokenizer, of_source)
            stats[split][source] = {
                "documents": len(of_source),
                "tokens": len(stream),
                "bytes": sum(len(document.text.encode()) for document in of_source),
            }
            if split == "heldout":
                np.save(out / f"heldout_{source}.npy", stream)
    (out / "stats.json").write_text(json.dumps(stats, indent=2) + "\n")
    return stats


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, default=Path("build/rgemma_tiny_en"), help="folder to write into")
    add(
        "--wordnet", type=Path, default=Path("/usr/share/wordnet"), help="folder of WordNet's files"
    )
    add("--model_type", choices=("unigram", "bpe"), default="bpe", help="kind of tokenizer")
    args = parser.parse_args()
    if not (args.wordnet / "data.noun").exists() or not shutil.which("bible"):
        raise SystemExit(f"A source is missing. On Debian or Ubuntu: apt-get install {PACKAGES}")
    documents = wordnet_documents(args.wordnet) + bible_documents()
    stats = write(documents, args.out, args.model_type, args.wordnet)
    print(f"{'split':9}{'source':9}{'documents':>9}{'tokens':>9}{'bytes':>10}{'bytes/token':>13}")
    for split, source in itertools.product(("train", "heldout"), SOURCES):
        count, tokens, size = stats[split][source].values()
        print(f"{split:9}{source:9}{count:9}{tokens:9}{size:10}{size / tokens:13.2f}")


if __name__ == "__main__":
    main()
