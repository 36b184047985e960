"""The commonest words of WordNet in many phrasings: what people ask a small model first.

Words are chosen by their frequency in English (`wordfreq`). No word is left out for what a model
makes of it.
"""

import re
from typing import NamedTuple

from phrasings import ABOUT_ITSELF, CAPITALS, KINDS, OPPOSITES, PHRASINGS
from wordfreq import zipf_frequency
from wordnet import (
    LIGHTHOUSE,
    article,
    capitalised,
    digest,
    head,
    is_counted,
    is_plural,
    split_gloss,
    with_article,
)

HOW_MANY = {"noun": 1600, "verb": 250, "adj": 250}
# Lexicographer files of things that can be seen: animal, artifact, body, food, object, person,
# plant, substance. People ask for them more often than their frequency in texts says.
SEEN = {"05", "06", "08", "13", "17", "18", "20", "27"}
SEEN_BONUS = 0.5  # of the base-10 logarithm of the frequency
NOT_ASKED = re.compile(
    r"offensive|slur|vulgar|obscene|disparag|slang|sexual|genital|excret|feces|prostitut"
)
NAMES = "john jack bill billy bob mike nick rob josh ken clarence jerry peter frank mark"
FUNCTION_WORDS = (
    "the and for are was were been being has had have does did can may will must shall could "
    "would should might not but nor yet off out all any some each every both few more most other "
    "such own same than too very just now then here there when where why how who whom which what "
    "this that these those she her him his its our you your they them their with from into onto "
    "over under about above below again once only also even still ever never because while until "
    "since"
)

CAPITAL = re.compile(
    r"(?:the )?(?:[a-z]+ )?capital (?:and [a-z ]+ )?of "
    r"([A-Z][A-Za-z]+(?: [A-Z][A-Za-z]+)*)(?=;|$| on| in|,)"
)


class Word(NamedTuple):
    """A common word with the meaning that it has most often.

    `definition` is one clause; `kinds` are the names of its direct hypernyms; `synonyms` are the
    other words of its synset; `opposites` are the words that WordNet calls its antonyms.
    """

    pos: str
    text: str
    named: str
    definition: str
    kinds: list
    synonyms: list
    opposites: list

    @property
    def answer(self):
        """The sentence that defines the word, the same for each phrasing."""
        if self.pos == "verb":
            return f"To {self.text} is to {self.definition.removeprefix('to ')}."
        if self.pos == "adj":
            return f'"{capitalised(self.text)}" means {self.definition}.'
        return f"{capitalised(self.named)} is {self.definition}."


def clause(definition):
    """The first clause of a definition, without what stands in parentheses."""
    short = re.sub(r"\s*\([^()]*\)", "", definition).partition(";")[0].strip(" ,:.-")
    return " ".join(short.split())


def parts_of_speech(folder, synsets):
    """The part of speech as which each word is used most often, by WordNet's tagged texts."""
    used = {}
    for line in (folder / "cntlist.rev").read_text(encoding="utf-8").splitlines():
        key, _, count = line.split()
        lemma, _, rest = key.partition("%")
        pos = ("noun", "verb", "adj", "adv", "adj")[int(rest[0]) - 1]
        used.setdefault(lemma, dict.fromkeys(("noun", "verb", "adj", "adv"), 0))[pos] += int(count)
    for synset in synsets:  # untagged words: nouns before verbs before adjectives
        for lemma in synset.lemmas:
            counts = used.setdefault(lemma, dict.fromkeys(("noun", "verb", "adj", "adv"), 0))
            counts[synset.pos] += 0.5
    return {lemma: max(counts, key=counts.get) for lemma, counts in used.items()}


def common_words(folder, synsets, held_out):
    """The words of `HOW_MANY`, the commonest first.

    Args:
        folder: `pathlib.Path`, the folder of WordNet's files.
        synsets: list of `Synset`, all of WordNet.
        held_out: string, the texts that are not trained. A word that they define is left out.

    Returns:
        A list of `Word`.
    """
    by_key = {synset.key: synset for synset in synsets}
    usual = parts_of_speech(folder, synsets)
    inflected = {line.split()[0] for line in (folder / "verb.exc").read_text().splitlines()}
    never_asked = {*FUNCTION_WORDS.split(), *NAMES.split()}
    found = {pos: {} for pos in HOW_MANY}
    for synset in synsets:
        if synset.pos not in HOW_MANY or synset.is_instance or NOT_ASKED.search(synset.gloss):
            continue
        full = split_gloss(synset.gloss)[0]
        definition = clause(full)
        if len(definition) < 4 or "(" in definition or ")" in definition or full in held_out:
            continue
        for i, lemma in enumerate(synset.lemmas, 1):
            if not re.fullmatch("[a-z]{3,}", lemma) or lemma not in synset.first:
                continue
            if usual[lemma] != synset.pos or lemma in never_asked:
                continue
            rank = zipf_frequency(lemma, "en")
            if synset.pos == "noun":
                if is_plural(lemma) or lemma in inflected:  # "sent" is a coin, too
                    continue
                rank += SEEN_BONUS * (synset.lexicographer_file in SEEN)
            rank = 9 if lemma == LIGHTHOUSE else rank
            if lemma not in found[synset.pos]:
                word = make_word(synset, i, lemma, definition, by_key)
                found[synset.pos][lemma] = (rank, word)
    words = []
    for pos, count in HOW_MANY.items():
        ranked = sorted(found[pos].values(), key=lambda pair: (-pair[0], pair[1].text))
        words += [word for _, word in ranked[:count]]
    return words


def make_word(synset, number, lemma, definition, by_key):
    """The `Word` of the lemma with this number, from 1, in a synset."""
    kinds, opposites = [], []
    for relation, key, numbers in synset.pointers:
        if relation == "@":
            kinds += by_key[key].lemmas
        elif relation == "!" and int(numbers[:2], 16) == number:
            opposites.append(by_key[key].lemmas[int(numbers[2:], 16) - 1])
    named = lemma
    if synset.pos == "noun" and is_counted(synset, lemma, definition):
        named = f"{article(lemma)} {lemma}"
        definition = with_article(definition)
    synonyms = [other for other in synset.lemmas if other != lemma]
    return Word(synset.pos, lemma, named, definition, kinds, synonyms, opposites)


def capitals(synsets, held_out):
    """Pairs of a country or state and its capital, of which there is one in WordNet."""
    found = {}
    for synset in synsets:
        matched = CAPITAL.match(split_gloss(synset.gloss)[0]) if synset.is_instance else None
        if matched and synset.gloss[:60] not in held_out:
            found.setdefault(matched[1], []).append(synset.lemmas[0])
    return [(land, cities[0]) for land, cities in found.items() if len(cities) == 1]


def talk(words, land_and_capital):
    """Yield the questions and answers that are trained about the words.

    Args:
        words: list of `Word`.
        land_and_capital: list of pairs of strings.

    Yields:
        A pair of strings, a question and its answer.
    """
    kinds = [word.kinds[0] for word in words if word.pos == "noun" and word.kinds]
    for word in words:
        slots = {"a": word.named, "w": word.text}
        for phrasing in PHRASINGS[word.pos]:
            yield phrasing.format(**slots), word.answer
        name = capitalised(word.named)
        if word.pos == "noun" and word.kinds and head(word.kinds[0]) != word.text:
            kind = word.kinds[0]
            for phrasing in KINDS:
                yield phrasing.format(**slots), f"{name} is a kind of {kind}."
            a_kind = f"{article(kind)} {kind}" if word.named != word.text else kind
            yield f"Is {word.named} {a_kind}?", f"Yes, {word.named} is {a_kind}."
            other = kinds[digest(word.text) % len(kinds)]
            if other not in word.kinds:
                a_kind = f"{article(other)} {other}"
                answer = f"No, {word.named} is not {a_kind}. It is a kind of {kind}."
                yield f"Is {word.named} {a_kind}?", answer
        for opposite in word.opposites[:1]:
            for phrasing in OPPOSITES:
                yield phrasing.format(**slots), f"The opposite of {word.text} is {opposite}."
    for land, city in land_and_capital:
        for phrasing in CAPITALS:
            yield phrasing.format(w=land), f"The capital of {land} is {city}."
    for answer, questions in ABOUT_ITSELF.items():
        for question in questions:
            yield from [(question, answer)] * 12
