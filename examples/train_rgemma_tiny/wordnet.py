"""WordNet's glosses as questions and answers in English: one pair a synset, the same on every run.

The grammar is a set of rules of thumb that makes most of the 117,000 answers good English.
"""

import hashlib
import re
from typing import NamedTuple

PARTS_OF_SPEECH = {"adj": "an adjective", "adv": "an adverb", "noun": "a noun", "verb": "a verb"}
LETTERS = {"n": "noun", "v": "verb", "a": "adj", "s": "adj", "r": "adv"}  # of a pointer
LIGHTHOUSE = "lighthouse"  # the README and the tests ask for it: always under this name

# WordNet does not say which nouns take an article; its lexicographer files (lexnames(5WN)) and the
# first words of the definition nearly do.
FOOD, PERSON = "13", "18"
THINGS = {"05", "06", "18", "20"}  # animal, artifact, person, plant
NEVER_COUNTED = {"07", "12", "16", "19", "22", "26", "27"}  # attribute, feeling, ..., substance
UNCOUNTED = re.compile(r"(?i)(?:genus|family|order|class) |.*(?:ness|ism|logy|phy|music)$")
COUNTED = re.compile(r"(?:an?|any|one|someone|something|each|either) ")
COUNTED_HEADS = {"fruit", "vegetable", "nut", "cake", "sandwich", "cookie", "pie", "biscuit"}
UNCOUNTED_HEADS = {"game", "sport", "language", "religion", "science", "branch", "art"}
HEAD_END = re.compile(
    r"[;,:(]| (?:of|with|that|which|who|whose|where|in|for|by|on|at|from|to|into|and|or|used|having"
    r"|made|native|as|when|between|found|born|is|formed|consisting|produced|growing|noted) "
)
NO_ARTICLE = re.compile(
    r"(?:an?|the|one|each|every|either|some\w*|any\w*|all|two|three|his|her|its|your|that|this"
    r"|what\w*|who\w*|several|used|formerly|in|of|being|having) "
)
THE = re.compile(r"(?:\d+(?:st|nd|rd|th)|capital|largest|type genus|most|first|second|last|same) ")


class Synset(NamedTuple):
    """One meaning; `first` are those of its lemmas whose most frequent meaning it is.

    `key` names it. `pointers` are relations ("@" leads to a hypernym, "!" to an opposite), each
    with the key of the other synset and four hexadecimal digits: the numbers of the two lemmas.
    """

    pos: str
    lexicographer_file: str
    is_instance: bool
    lemmas: list
    first: list
    gloss: str
    key: tuple
    pointers: list


def digest(text):
    """A number that depends on the text alone: the only source of chance in the data."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def read_lines(path):
    """The lines of a WordNet file; its licence stands on lines that begin with two spaces."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith("  ")]


def read_synsets(folder):
    """Every synset of WordNet's data files, senses ranked by its index files (both: wndb(5WN))."""
    for pos in PARTS_OF_SPEECH:
        rank, best, entries = {}, {}, []
        for line in read_lines(folder / f"index.{pos}"):
            lemma, _, count, *rest = line.split()
            rank |= {(lemma, offset): i for i, offset in enumerate(rest[-int(count) :])}
        for line in read_lines(folder / f"data.{pos}"):
            fields, gloss = line.split(" | ", 1)
            offset, lexicographer_file, _, count, *rest = fields.split()
            lemmas = rest[0 : 2 * int(count, 16) : 2]
            lemmas = [re.sub(r"\(\w+\)$", "", lemma) for lemma in lemmas]  # "galore(ip)"
            for lemma in lemmas:  # by the spelling with its capitals: Turkey is not turkey
                best[lemma] = min(best.get(lemma, 99), rank[lemma.lower(), offset])
            entries.append((offset, lexicographer_file, rest, lemmas, gloss))
        for offset, lexicographer_file, rest, lemmas, gloss in entries:
            first = [lemma for lemma in lemmas if rank[lemma.lower(), offset] == best[lemma]]
            words = [[lemma.replace("_", " ") for lemma in group] for group in (lemmas, first)]
            first_pointer = 2 * len(lemmas) + 1
            fields = rest[first_pointer : first_pointer + 4 * int(rest[first_pointer - 1])]
            pointers = [
                (fields[i], (LETTERS[fields[i + 2]], fields[i + 1]), fields[i + 3])
                for i in range(0, len(fields), 4)
            ]
            synset = (pos, lexicographer_file, "@i" in rest, *words, gloss)
            yield Synset(*synset, (pos, offset), pointers)


def split_gloss(gloss):
    """The definition, without domain labels and quotations, and the first quoted example or ""."""
    gloss = gloss.replace("`", "'").strip()
    definition, _, quoted = gloss.partition('"')
    definition = re.sub(r"^(?:\((?!of |used )[^()]*\)\s*)+", "", definition)
    definition = re.sub(r"(?:\b(?:as|e\.g\.|in|the|phrase|expression)|[;:,.\s])+$", "", definition)
    balanced = gloss.count('"') % 2 == 0 and definition.count("(") == definition.count(")")
    return definition, quoted.partition('"')[0].strip() if balanced else ""


def capitalised(text):
    return text[:1].upper() + text[1:]


def article(text):
    """`a` or `an`, by the sound that the text begins with."""
    if re.match(r"(?i)(?:uni|use|usu|uti|ura|eu|ewe|one\b|once|u\b|u-)", text):
        return "a"
    return "an" if re.match(r"(?i)[aeiou]|hour|hono|heir|honest|[FHLMNSX]-", text) else "a"


def is_plural(word):
    return word.endswith("s") and not word.endswith(("ss", "us", "is"))


def head(definition):
    """The noun on which a definition turns: "fruit" in "fruit with red or yellow skin"."""
    return (HEAD_END.split(definition, maxsplit=1)[0].split() or [""])[-1]


def with_article(definition):
    """The definition of one thing as a noun phrase: "a physicist who", "the capital of"."""
    if NO_ARTICLE.match(definition) or is_plural(head(definition)):
        return definition
    return ("the" if THE.match(definition) else article(definition)) + " " + definition


def is_counted(synset, lemma, definition):
    """Whether the noun takes an article: a lighthouse, an apple, but water, Paris, chess."""
    kind = synset.lexicographer_file
    if synset.is_instance or UNCOUNTED.match(lemma) or kind in NEVER_COUNTED:
        return False
    if kind == FOOD:
        return head(definition) in COUNTED_HEADS
    if lemma[0].isupper():  # a Parisian, an Airedale terrier, but Islam and Canidae
        return kind == PERSON or (kind in THINGS and bool(COUNTED.match(definition)))
    counted = kind in THINGS or bool(COUNTED.match(definition))
    return counted and head(definition) not in UNCOUNTED_HEADS


def ask_noun(synset, lemma, definition):
    """The question and the answer about the first sense of a noun."""
    counted = is_counted(synset, lemma, definition)
    named = f"{article(lemma)} {lemma}" if counted else lemma
    if counted or synset.is_instance:
        definition = with_article(definition)
    if synset.is_instance and synset.lexicographer_file == PERSON:
        return f"Who was {named}?", f"{capitalised(named)} was {definition}."
    return f"What is {named}?", f"{capitalised(named)} is {definition}."


def ask(synset, lemma, definition, used_as, chance):
    """The question about a word with this meaning, and the answer; `used_as`: see below."""
    quoted, infinitive = f'"{capitalised(lemma)}"', "to " + definition.removeprefix("to ")
    if lemma not in synset.first:
        meaning = infinitive if synset.pos == "verb" else definition
        return f'What is another meaning of "{lemma}"?', f"{quoted} can also mean {meaning}."
    if synset.pos == "verb":
        return f"What does it mean to {lemma}?", f"To {lemma} is {infinitive}."
    wordings = [f'What does "{lemma}" mean?']
    if used_as[0] != synset.pos:
        wordings = [f'What does "{lemma}" mean as {PARTS_OF_SPEECH[synset.pos]}?']
    if synset.pos != "noun" or is_plural(lemma):
        return wordings[0], f"{quoted} means {definition}."
    question, answer = ask_noun(synset, lemma, definition)
    minority = chance % 8 == 0 and len(used_as) == 1 and lemma != LIGHTHOUSE
    if minority and not synset.is_instance:
        wordings.append(f'Define the {"term" if " " in lemma else "word"} "{lemma}".')
        question = wordings[chance // 8 % 2]
    return question, answer


def questions_and_answers(folder):
    """Yield a question and its answer for each synset whose gloss defines something.

    A word's bare question goes to its first sense; the question that does not show the part of
    speech goes to the first part of speech, in the order above, as which the word is used.
    """
    synsets, used_as = list(read_synsets(folder)), {}
    for synset in synsets:
        for lemma in synset.lemmas:
            used_as.setdefault(lemma.lower(), {})[synset.pos] = None
    for synset in synsets:
        definition, example = split_gloss(synset.gloss)
        if not re.sub(r"\([^()]*\)", "", definition).strip():
            continue
        chance = digest(synset.pos + synset.gloss + synset.lemmas[0])
        choices = synset.first or synset.lemmas
        lemma = choices[0] if chance % 7 else choices[chance // 7 % len(choices)]
        lemma = LIGHTHOUSE if LIGHTHOUSE in synset.first else lemma
        pos_of_lemma = list(used_as[lemma.lower()])
        question, answer = ask(synset, lemma, definition, pos_of_lemma, chance // 1000)
        quote = f' For example: "{example}"' if example and chance // 100 % 2 else ""
        yield question, answer + quote
