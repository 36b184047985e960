"""Asks a preset 200 questions about common words, in phrasings that were not trained.

    python examples/train_rgemma_tiny/quiz.py --preset rgemma_tiny_en --show 10
    python examples/train_rgemma_tiny/quiz.py --plain

The questions are in quiz.json, which `prepare.py` writes: 140 nouns, 30 verbs and 30 adjectives,
at equal distances in the lists of the words that were trained, ordered by frequency. The
phrasings take turns. The rule:

- The answer is what greedy search writes within 48 tokens. It must end by itself, with a full
  stop: the next token is `<end_of_turn>`.
- It must hold a key word of the word's first meaning in WordNet, whole, in singular or plural.
  The keys of a noun are the noun on which its definition turns and the last words of the names of
  its direct hypernyms. Those of a verb or an adjective are the content words of its definition, its
  hypernyms and its synonyms.
- The word asked for is no key, and neither is a word that says little (`UNSPECIFIC`). A noun
  without a key left has the content words of its definition instead.

`--plain` asks for the same words in the commonest phrasing, which is trained ("What is a river?").
As a control, each answer is also judged by the keys of the next question about the same part of
speech: so many would be right by chance.
"""

import argparse
import json
import pathlib
import re

from phrasings import PHRASINGS, QUIZ_PHRASINGS

QUIZ = pathlib.Path(__file__).with_name("quiz.json")
QUESTIONS = {"noun": 140, "verb": 30, "adj": 30}
MAX_NEW_TOKENS = 48
UNSPECIFIC = (
    "person people someone somebody something anything thing things act action activity state "
    "quality part way kind type group set unit property condition process event time amount "
    "number place member being be is are was have has having make making made do cause causing "
    "get give take become come put go use used using with without from that this which who whose "
    "when where what into onto over under about for and the not more most less least very much "
    "many other another one two some any all each every such than its his her your their them it "
    "has been can may especially usually often also between among toward towards by at in of on "
    "or to as an certain particular various relating marked characterized having change move"
)
HEAD_END = re.compile(
    r"[;,:(]| (?:of|with|that|which|who|whose|where|in|for|by|on|at|from|to|into|and|or|used|having"
    r"|made|native|as|when|between|found|born|is|formed|set|given|\w+ed|\w+ing) "
)


def content_words(text):
    """The words of a text of three letters or more that say something."""
    unspecific = set(UNSPECIFIC.split())
    return [w for w in re.findall("[a-z]{3,}", text.lower()) if w not in unspecific]


def key_words(word):
    """The words of which a right answer about a `words.Word` holds one.

    Args:
        word: `words.Word`.

    Returns:
        A sorted list of strings.
    """
    names = word.kinds + (word.synonyms if word.pos != "noun" else [])
    last_words = [re.split("[ _-]", name)[-1].lower() for name in names]
    definition = content_words(word.definition)
    if word.pos == "noun":
        turning = HEAD_END.split(f"{word.definition} ", maxsplit=1)[0].split()[-1:]
        keys = set(content_words(" ".join(last_words + turning))) - {word.text}
        keys = keys or set(definition)
    else:
        keys = set(content_words(" ".join(last_words))) | set(definition)
    return sorted(keys - {word.text})


def make_quiz(words):
    """Choose the words at equal distances, and the phrasings in turn.

    Args:
        words: list of `words.Word`, each part of speech ordered by frequency.

    Returns:
        A list of dicts with the keys "pos", "word", "question", "plain" (the question in a
        phrasing that is trained) and "keys".
    """
    quiz = []
    for pos, count in QUESTIONS.items():
        # A word may have no key: "kind", for example. It is not asked.
        asked = [word for word in words if word.pos == pos and key_words(word)]
        for i in range(count):
            word = asked[i * len(asked) // count]
            phrasing = QUIZ_PHRASINGS[pos][i % len(QUIZ_PHRASINGS[pos])]
            question, plain = (
                text.format(a=word.named, w=word.text) for text in (phrasing, PHRASINGS[pos][0])
            )
            about = {"pos": pos, "word": word.text, "question": question, "plain": plain}
            quiz.append({**about, "keys": key_words(word)})
    return quiz


def ends(answer):
    """Whether an answer ended by itself, with a full stop: True or False."""
    return answer.rstrip("\n").endswith(".<end_of_turn>")


def holds_key(answer, keys):
    """Whether a text holds one of the words, in singular or plural: True or False."""
    return any(re.search(rf"\b{re.escape(key)}(?:e?s)?\b", answer, re.IGNORECASE) for key in keys)


def judge(quiz, answers):
    """Count the right answers by the rule above.

    Args:
        quiz: list of the dicts that `make_quiz` returns.
        answers: list of strings, one a question, with `<end_of_turn>` where the model wrote it.

    Returns:
        A dict: "questions", "right", "ended" and "right_by_chance", counts, and "verdicts", a list
        with one bool a question.
    """
    by_pos = {}
    for item in quiz:
        by_pos.setdefault(item["pos"], []).append(item)
    following = {
        id(item): items[(i + 1) % len(items)]
        for items in by_pos.values()
        for i, item in enumerate(items)
    }
    pairs = list(zip(quiz, answers, strict=True))
    verdicts = [ends(answer) and holds_key(answer, item["keys"]) for item, answer in pairs]
    chance = [ends(a) and holds_key(a, following[id(item)]["keys"]) for item, a in pairs]
    return {
        "questions": len(quiz),
        "right": sum(verdicts),
        "ended": sum(ends(answer) for answer in answers),
        "right_by_chance": sum(chance),
        "verdicts": verdicts,
    }


def ask(lm, questions):
    """Answer each question by greedy search.

    Args:
        lm: `RGemmaCausalLM`.
        questions: list of strings.

    Returns:
        A list of strings: what the model wrote in at most 48 tokens, with `<end_of_turn>` after
        an answer that ended by itself.
    """
    prompts = [
        f"<start_of_turn>user\n{question}<end_of_turn>\n<start_of_turn>model\n"
        for question in questions
    ]
    lm.compile(sampler="greedy")
    texts = lm.generate(
        prompts, batch_size=40, max_new_tokens=MAX_NEW_TOKENS, strip_prompt=True, stop_token_ids=[1]
    )
    cut = [re.match(r"(?s).*?<end_of_turn>", text) for text in texts]
    return [found[0] if found else text for found, text in zip(cut, texts, strict=True)]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--preset", default="rgemma_tiny_en", help="preset or its folder")
    parser.add_argument("--quiz", type=pathlib.Path, default=QUIZ, help="file of questions")
    parser.add_argument("--show", type=int, default=0, help="print every Nth answer")
    parser.add_argument("--plain", action="store_true", help="ask in a phrasing that is trained")
    args = parser.parse_args()

    import keras_rgemma  # prepare.py writes the quiz without it

    quiz = json.loads(args.quiz.read_text())
    lm = keras_rgemma.RGemmaCausalLM.from_preset(args.preset)
    questions = [item["plain" if args.plain else "question"] for item in quiz]
    answers = ask(lm, questions)
    result = judge(quiz, answers)
    for i in range(0, len(quiz), args.show) if args.show else ():
        mark = "right" if result["verdicts"][i] else "wrong"
        print(f"{mark}  {questions[i]} -> {answers[i].removesuffix('<end_of_turn>')}")
    del result["verdicts"]
    print(json.dumps(result))


if __name__ == "__main__":
    main()
