"""Names the tasks of the harness that stand for the rows of the published model cards."""

import dataclasses
import difflib
import functools
import json
import pathlib
from collections.abc import Iterable

_ANOTHER_CLASSIFIER = (
    "the card's figure comes from a classifier of generated text, and the harness has no such task"
)


@dataclasses.dataclass(frozen=True)
class Row:
    """Describes a row of a table: a task of the harness, and how it is asked.

    Attributes:
        name: str, of the row in the published table, or of the task.
        task: str, of the harness; "" if it has none for this row.
        num_fewshot: int, examples before each question; None for the task's own number.
        metric: str, "METRIC,FILTER" as in the harness' results; "" for every metric of the task.
        note: str, what differs from the card or is not told there; without a task the reason.
        runs_code: bool, whether the task runs programs that the model wrote.
        variable: str, the environment variable that the task needs; "" for none.
    """

    name: str
    task: str = ""
    num_fewshot: int | None = None
    metric: str = ""
    note: str = ""
    runs_code: bool = False
    variable: str = ""


_NO_SHOTS = "the card tells no number of examples"
_ACC, _NORM = "acc,none", "acc_norm,none"
_EXACT = "exact_match,"

BENCHMARKS: tuple[Row, ...] = (
    Row("MMLU", "mmlu", 5, _ACC),
    Row("HellaSwag", "hellaswag", 0, _NORM),
    Row("PIQA", "piqa", 0, _NORM),
    Row("SocialIQA", "social_iqa", 0, _ACC),
    Row("BoolQ", "boolq", 0, _ACC),
    Row("WinoGrande", "winogrande", 0, _ACC, "the words after the gap are scored (partial score)"),
    Row("CommonsenseQA", "commonsense_qa", 7, _ACC),
    Row("OpenBookQA", "openbookqa", 0, _NORM, _NO_SHOTS),
    Row("ARC-e", "arc_easy", 0, _ACC, _NO_SHOTS),
    Row("ARC-c", "arc_challenge", 0, _NORM, _NO_SHOTS),
    Row("TriviaQA", "triviaqa", 5, f"{_EXACT}remove_whitespace"),
    Row("Natural Questions", "nq_open", 5, f"{_EXACT}remove_whitespace"),
    Row("HumanEval", "humaneval", 0, "pass@1,create_test", runs_code=True),
    Row("MBPP", "mbpp", 3, "pass_at_1,none", runs_code=True),
    Row("GSM8K", "gsm8k", 5, f"{_EXACT}flexible-extract", f"one greedy answer; {_NO_SHOTS}"),
    Row("MATH", "minerva_math", 4, "math_verify,none"),
    Row("AGIEval", "agieval_en", 0, _ACC, f"the tasks in English; {_NO_SHOTS}"),
    Row(
        "BIG-Bench",
        "bbh_cot_fewshot",
        3,
        f"{_EXACT}get-answer",
        f"BIG-Bench Hard with reasoning; {_NO_SHOTS}",
    ),
)
AVERAGE = "Average"  # a row of the card: the mean of the others

SAFETY: tuple[Row, ...] = (
    Row(
        "RealToxicity",
        "realtoxicityprompts",
        0,
        "perspective_api_toxicity_score,none",
        "the mean score of the Perspective API",
        variable="PERSPECTIVE_API_KEY",
    ),
    Row("BOLD", note=_ANOTHER_CLASSIFIER),
    Row("CrowS-Pairs", "crows_pairs_english", 0, "pct_stereotype,none"),
    Row("BBQ Ambig", "bbq_ambig", 0, "accuracy_amb,none", _NO_SHOTS),
    Row("BBQ Disambig", "bbq_disambig", 0, "accuracy_disamb,none", _NO_SHOTS),
    Row("Winogender", "winogender_all", 0, _ACC),
    Row("TruthfulQA", "truthfulqa_mc2", 0, _ACC, "the card does not name the form of the task"),
    Row("Winobias 1_2", note="the harness has no task with pairs of this type"),
    Row("Winobias 2_2", note="the harness has no task with pairs of this type"),
    Row(
        "Toxigen", note=f"its `toxigen` asks whether statements are hateful: {_ANOTHER_CLASSIFIER}"
    ),
)

SUITES: dict[str, tuple[Row, ...]] = {"model-card": BENCHMARKS, "safety": SAFETY}
_TABLES = {"model-card": "benchmarks", "safety": "safety"}
# The columns of the two tables in which a preset stands; an instruct model is in the second alone.
_COLUMNS = {
    "rgemma_2b_en": ("RecurrentGemma 2B", "RecurrentGemma 2B"),
    "rgemma_9b_en": ("RecurrentGemma 9B", "RecurrentGemma 9B"),
    "rgemma_instruct_2b_en": (None, "RecurrentGemma 2B IT"),
    "rgemma_instruct_9b_en": (None, "RecurrentGemma 9B IT"),
    "gemma_2b_en": ("Gemma 2B", None),
    "gemma_7b_en": ("Gemma 7B", None),
    "gemma_instruct_2b_en": (None, "Gemma 1.0 2B IT"),
    "gemma_instruct_7b_en": (None, "Gemma 1.0 7B IT"),
    "gemma_1.1_instruct_2b_en": (None, "Gemma 1.1 2B IT"),
    "gemma_1.1_instruct_7b_en": (None, "Gemma 1.1 7B IT"),
}


@functools.cache
def model_cards() -> dict[str, dict[str, dict[str, float | None]]]:
    """Reads the published results: tables "benchmarks" and "safety" of columns of rows, percent."""
    path = pathlib.Path(__file__).with_name("model_cards.json")
    return json.loads(path.read_text(encoding="utf-8"))


def published(suite: str, preset: str, column: str | None = None) -> dict[str, float | None]:
    """Finds what was published of a preset.

    Args:
        suite: str, "model-card" or "safety"; another suite has nothing published.
        preset: str, a name or a handle such as `hf://google/recurrentgemma-2b`.
        column: str, the column of the table that is compared with, such as "RecurrentGemma 2B";
            None for that of the preset.

    Returns:
        A dict of the names of rows and percentages; empty where nothing was published.

    Raises:
        ValueError: the table has no such column, or the suite no table.
    """
    if suite not in _TABLES:
        if column is not None:
            raise ValueError(
                f"`column` compares with the table of a suite, {' or '.join(map(repr, SUITES))}. "
                f"Received {column!r} with suite={suite!r}, of which nothing is published."
            )
        return {}
    table = model_cards()[_TABLES[suite]]
    if column is None:
        columns = _COLUMNS.get(_name_of(preset), (None, None))
        column = columns[list(_TABLES).index(suite)]
        return {} if column is None else table[column]
    if column not in table:
        raise ValueError(
            f"`column` must be a column of the {suite} table: {', '.join(table)}. "
            f"Received: {column!r}."
        )
    return table[column]


def _name_of(preset: str) -> str:
    """Returns the name of a preset behind a handle of a hub: Google's repositories, for example."""
    name = preset.rstrip("/").rpartition("/")[2]
    for size in ("2b", "9b"):
        if name == f"recurrentgemma-{size}":
            return f"rgemma_{size}_en"
        if name == f"recurrentgemma-{size}-it":
            return f"rgemma_instruct_{size}_en"
    return name


def rows_of(suite: str | Iterable[str], known: Iterable[str]) -> tuple[str, tuple[Row, ...]]:
    """Lists the rows of a suite.

    Args:
        suite: str or iterable of str, "model-card", "safety", or names of tasks; a str may hold
            several with commas between.
        known: iterable of str, the names of the harness' tasks, groups and tags.

    Returns:
        The name of the suite and a tuple of `Row`.

    Raises:
        ValueError: there is no task, or one is unknown.
    """
    names = suite.split(",") if isinstance(suite, str) else list(suite)
    names = list(dict.fromkeys(filter(None, map(str.strip, names))))
    if len(names) == 1 and names[0] in SUITES:
        return names[0], SUITES[names[0]]
    known = {*known}
    for name in names:
        if name not in known:
            near = [] if name in SUITES else difflib.get_close_matches(name, [*known, *SUITES], n=3)
            hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
            raise ValueError(
                f"`suite` must be {' or '.join(map(repr, SUITES))}, one of them alone, or tasks of "
                f"the harness (`keras-rgemma lm-eval ls tasks`). Received: {name!r}.{hint}"
            )
    if not names:
        raise ValueError(f"`suite` names no task. Received: {suite!r}.")
    return ",".join(names), tuple(Row(name, name) for name in names)
