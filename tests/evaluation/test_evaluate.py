"""`evaluate` measures suites beside what was published, and goes on after any break."""

import json
import subprocess
import sys

import keras
import pytest

pytest.importorskip("lm_eval")

from lm_eval.tasks import TaskManager

from backend_independent import backend_independent
from harness_tasks import PROMPTS, QUESTIONS, write_tasks
from keras_rgemma.cli import main
from keras_rgemma.evaluation import evaluate as module
from keras_rgemma.evaluation.evaluate import evaluate
from keras_rgemma.evaluation.harness import HarnessModel
from keras_rgemma.evaluation.report import Line, Report, average, read_report, side_by_side
from keras_rgemma.evaluation.suites import (
    BENCHMARKS,
    SAFETY,
    Row,
    model_cards,
    published,
    rows_of,
)
from keras_rgemma.model.causal_lm import RGemmaCausalLM

PRESET = "rgemma_tiny_en"
NAMES = ["rgemma_choice", "rgemma_generation"]
ROWS = (Row("Choices", NAMES[0], 2, "acc,none"), Row("Texts", NAMES[1], 0, "exact_match,none"))
pytestmark = pytest.mark.skipif(
    keras.config.backend() != "torch", reason="the harness' model is tested on every backend"
)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture
def suite(monkeypatch):
    """Two rows with published results, of which one names a task without data."""
    missing = Row("Missing", "piqa", 0, "acc,none")
    unsafe = Row("Programs", "humaneval", 0, "pass@1,create_test", runs_code=True)
    rows = (*ROWS, missing, unsafe, Row("Nothing", note="the harness has none"))
    monkeypatch.setattr(module, "rows_of", lambda suite, known: (suite, rows))
    columns = {"Choices": 40.0, "Texts": 1.5, "Missing": 70.0, "Average": 50.0}
    monkeypatch.setattr(module, "published", lambda *_: columns)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


def test_every_published_row_has_a_task_or_a_reason():
    known = TaskManager().all_tasks
    for table, rows in (("benchmarks", BENCHMARKS), ("safety", SAFETY)):
        names = [row.name for row in rows]
        for column in model_cards()[table].values():
            assert [name for name in column if name != "Average"] == names
        for row in rows:
            assert (row.task in known and row.metric) if row.task else row.note


def test_published_facts_are_those_of_the_cards():
    """The mean of the rows is the published average, so no row was lost or moved."""
    for column in model_cards()["benchmarks"].values():
        values = dict(column)
        mean = values.pop("Average")
        assert len(values) == 18 and abs(sum(values.values()) / 18 - mean) < 0.5
    assert published("model-card", "rgemma_9b_en")["MMLU"] == 60.5
    assert published("model-card", "hf://google/recurrentgemma-2b")["GSM8K"] == 13.4
    assert published("safety", "rgemma_instruct_2b_en")["TruthfulQA"] == 42.7
    assert published("model-card", "my_preset") == {} == published("piqa", "rgemma_2b_en")
    assert published("model-card", "my_preset", "Gemma 2B")["MMLU"] == 42.3
    with pytest.raises(ValueError, match=r"RecurrentGemma 2B, .* Received: 'Gemma 3'"):
        published("model-card", "my_preset", "Gemma 3")
    with pytest.raises(ValueError, match=r"`column` compares with .*suite='piqa'"):
        published("piqa", "my_preset", "Gemma 2B")


def test_a_suite_names_tasks():
    assert rows_of("model-card", [])[1] == BENCHMARKS
    assert rows_of(["b", " a", "b"], "ab") == ("b,a", (Row("b", "b"), Row("a", "a")))
    for wrong in ("hellaswaq", "safety,piqa"):
        with pytest.raises(ValueError, match=r"Did you mean|Received: 'safety'\.$"):
            rows_of(wrong, ["hellaswag", "piqa"])
    with pytest.raises(ValueError, match="names no task"):
        rows_of(" ,", ["piqa"])


def test_measured_stands_beside_published(suite, tasks, tmp_path, capsys):
    report = evaluate(PRESET, "model-card", tmp_path / "out", include_path=tasks)
    choices, texts, missing, unsafe, nothing, mean = report.lines
    assert choices.num_samples == len(QUESTIONS) and texts.num_samples == len(PROMPTS)
    assert 0 <= choices.measured <= 100 and choices.num_fewshot == 2
    assert choices.difference == choices.measured - 40.0 and choices.stderr > 0
    assert "could not be loaded" in missing.reason and report.failures == [missing]
    assert "run_unsafe_code" in unsafe.reason and nothing.reason == "the harness has none"
    assert mean.measured is None and mean.reason == "3 of its 5 rows were not measured"
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert text == str(report) and f"{choices.difference:+.1f}" in text
    assert len({len(line) for line in text.splitlines() if line.startswith("|")}) == 1
    kept = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert kept["results"][0]["measured"] == choices.measured
    assert kept["settings"]["backend"] == keras.config.backend()
    assert "[1/5] Choices" in capsys.readouterr().err


def test_a_second_call_loads_no_model(tasks, tmp_path, monkeypatch):
    first = evaluate(PRESET, NAMES, tmp_path / "out", include_path=tasks)
    monkeypatch.setattr(module, "HarnessModel", None)
    again = evaluate(PRESET, NAMES, tmp_path / "out", include_path=tasks, batch_size=2)
    assert again == first
    assert {line.name for line in again.lines} == {*NAMES}
    changed = {"limit": 1, "dtype": "bfloat16", "apply_chat_template": True, "revision": "main"}
    for name, value in changed.items():
        with pytest.raises(ValueError, match="of other settings"):
            evaluate(PRESET, NAMES, tmp_path / "out", include_path=tasks, **{name: value})


def test_other_weights_and_other_folders_are_refused(tasks, tmp_path):
    evaluate(PRESET, NAMES[:1], tmp_path / "out", include_path=tasks, limit=1)
    settings = tmp_path / "out" / "settings.json"
    kept = json.loads(settings.read_text(encoding="utf-8"))
    settings.write_text(json.dumps({**kept, "weights": "0" * 8}), encoding="utf-8")
    with pytest.raises(ValueError, match="weights: '00000000', now"):
        evaluate(PRESET, NAMES[1:], tmp_path / "out", include_path=tasks, limit=1)
    with pytest.raises(ValueError, match="holds something"):
        evaluate(PRESET, NAMES, tasks, include_path=tasks)
    with pytest.raises(ValueError, match="must be a folder"):
        evaluate(PRESET, NAMES, settings, include_path=tasks)


def test_options_are_checked_before_a_model_is_loaded(tasks, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "HarnessModel", None)
    for name, value in {"limit": 0, "num_fewshot": -1, "include_path": "nowhere"}.items():
        options = {"include_path": tasks, name: value}
        with pytest.raises(ValueError, match=f"`{name}` must be"):
            evaluate(PRESET, NAMES[:1], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match=r"`batch_size` must be .* 'x'"):
        HarnessModel("no_such_preset", batch_size="x")


def test_a_broken_folder_goes_on_or_says_what_to_do(tasks, tmp_path, capsys):
    """A mistyped option costs nothing; a cut result is made again, of the answers that are kept."""
    out = tmp_path / "out"
    options = {"include_path": tasks, "limit": 1, "progress": False}
    with pytest.raises(ValueError, match="bfloat17"):
        evaluate(PRESET, NAMES[:1], out, **options, dtype="bfloat17")
    first = evaluate(PRESET, NAMES[:1], out, **options)
    for text in ('{"task": "x", ', "{}"):
        (out / f"{NAMES[0]}.json").write_text(text, encoding="utf-8")
        assert evaluate(PRESET, NAMES[:1], out, **options).lines == first.lines
    (out / "answers_rank0.db").write_text("{}", encoding="utf-8")
    with pytest.raises(RuntimeError, match=r"answers_rank0.db' cannot be kept: file is not a dat"):
        evaluate(PRESET, NAMES[1:], out, **options)
    for text in ('{"preset": ', "{}"):
        (out / "report.json").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=r"report.json'"):
            read_report(out)
    (out / "settings.json").write_text('{"preset": ', encoding="utf-8")
    with pytest.raises(ValueError, match=r"of the evaluation in .* delete that folder"):
        evaluate(PRESET, NAMES[:1], out, **options)
    assert "Traceback" not in capsys.readouterr().err


def test_a_folder_that_was_saved_anew_is_another_model(tasks, tmp_path):
    lm = RGemmaCausalLM.from_preset(PRESET)
    options = {"include_path": tasks, "limit": 1, "progress": False}
    lm.save_to_preset(tmp_path / "preset")
    evaluate(tmp_path / "preset", NAMES[:1], tmp_path / "out", **options)
    evaluate(tmp_path / "preset", NAMES[:1], tmp_path / "out", **options)
    embeddings = lm.backbone.token_embedding.embeddings
    embeddings.assign(embeddings * 0.5)
    lm.save_to_preset(tmp_path / "preset")
    with pytest.raises(ValueError, match=r"of other settings .weights"):
        evaluate(tmp_path / "preset", NAMES[:1], tmp_path / "out", **options)


@backend_independent
def test_rows_of_other_questions_are_not_joined():
    def report(count, **settings):
        return Report("a", "b", settings, (Line("c", "c", 0, "acc,none", 50.0, 1.0, None, count),))

    table = side_by_side([report(9), report(2), report(9, system="x"), report(9)])
    cells = [x.strip() for x in table.splitlines()[-1].strip("|").split("|")]
    assert cells == ["c", "50.0 ± 1.0", "", "", "50.0 ± 1.0"]


KILLED = """
import os, signal, sys
import keras_rgemma.evaluation.harness as harness
from keras_rgemma.evaluation.evaluate import evaluate

class Killed(harness.HarnessModel):
    def set_cache_hook(self, hook):
        super().set_cache_hook(hook)
        add = hook.add_partial
        def add_partial(*args):
            add(*args)
            left.pop() if left else os.kill(os.getpid(), signal.SIGKILL)
        hook.add_partial = add_partial

import keras_rgemma.evaluation.evaluate as module
module.HarnessModel = Killed
tasks, out, left = sys.argv[1], sys.argv[2], list(range(int(sys.argv[3])))
evaluate("rgemma_tiny_en", {names}, out, include_path=tasks, batch_size=2)
"""


@pytest.mark.parametrize("count", [3, 12])  # among the choices, and among the texts
def test_a_killed_evaluation_goes_on(count, tasks, tmp_path, monkeypatch):
    """The process dies after some answers; none of those before is asked for again."""
    command = [sys.executable, "-c", KILLED.format(names=NAMES), tasks, tmp_path / "out", count]
    assert subprocess.run(list(map(str, command)), capture_output=True).returncode == -9
    asked = []
    for name in ("loglikelihood", "generate_until"):
        method = getattr(HarnessModel, name)
        monkeypatch.setattr(
            HarnessModel,
            name,
            lambda self, requests, *a, _m=method: asked.extend(requests) or _m(self, requests, *a),
        )
    report = evaluate(PRESET, NAMES, tmp_path / "out", include_path=tasks)
    total = sum(len(choices) for _, choices, _ in QUESTIONS) + len(PROMPTS)
    # Answers are written in another thread: the last ones may be lost with the process.
    assert total - count - 1 <= len(asked) < total
    asked.clear()
    whole = evaluate(PRESET, NAMES, tmp_path / "whole", include_path=tasks)
    assert len(asked) == total
    assert [(x.metric, x.measured) for x in report.lines] == [
        (x.metric, x.measured) for x in whole.lines
    ]


def test_the_command(suite, tasks, tmp_path, capsys):
    command = ["evaluate", PRESET, "--output", str(tmp_path / "out"), "--include-path", str(tasks)]
    assert main([*command, "--json"]) == 1
    out, err = capsys.readouterr()
    assert len(json.loads(out)["results"]) == 6
    assert err.endswith("keras-rgemma: Not measured: Missing. The reasons are in the table.\n")
    assert main([*command, "--limit", "1"]) == 1
    assert "limit: None, now 1" in capsys.readouterr().err


def test_models_stand_beside_each_other(tasks, tmp_path, capsys):
    evaluate(PRESET, NAMES[:1], tmp_path / "first", include_path=tasks, num_fewshot=1, limit=2)
    other = evaluate(PRESET, NAMES[:1], tmp_path / "other", include_path=tasks, limit=2)
    command = ["evaluate", PRESET, "--suite", NAMES[0], "--limit", "2", "--include-path", tasks]
    command += ["--output", tmp_path / "again"]
    capsys.readouterr()
    for folder in ("first", "other"):
        command += ["--beside", tmp_path / folder]
    assert main(list(map(str, command))) == 0
    table = capsys.readouterr().out.split("\n\n")[-1].splitlines()
    head, _, *rows = [[x.strip() for x in line.strip("|").split("|")] for line in table if line]
    assert head == ["", *[f"{PRESET}, float32"] * 3]
    assert [x for x, *_ in rows] == [f"{NAMES[0]} acc", f"{NAMES[0]} acc_norm"]
    for (_, again, first, same), line in zip(rows, other.lines, strict=True):
        assert first == ""  # it was asked with examples
        assert again == same == f"{line.measured:.4g} ± {line.stderr:.4g}"
    assert main([*map(str, command), "--beside", str(tasks)]) == 1
    assert "holds no report.json" in capsys.readouterr().err


def test_a_missing_harness_is_named(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "keras_rgemma.evaluation.evaluate")
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert main(["evaluate", PRESET]) == 1
    assert 'pip install "keras-rgemma[eval]"' in capsys.readouterr().err


@backend_independent
def test_an_average_needs_every_row():
    lines = [Line("a", measured=40.0, stderr=3.0), Line("b", measured=60.0, stderr=4.0)]
    mean = average("Average", lines, 51.0)
    assert (mean.measured, mean.stderr, mean.difference) == (50.0, 2.5, -1.0)
    assert average("Average", [*lines, Line("c", reason="x")], 51.0).measured is None


def test_the_folder_is_named_after_the_preset(tasks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evaluate(PRESET, NAMES[:1], include_path=tasks, limit=1, progress=False)
    assert (tmp_path / f"evaluation-{PRESET}" / "report.md").exists()
