"""Measures the rows of the model cards, or any task of the harness, and goes on after a break."""

import functools
import importlib.metadata
import os
import pathlib
import re
import sys
import time
from collections.abc import Iterable
from typing import Any

import keras
import lm_eval
from lm_eval.tasks import TaskManager

from keras_rgemma.config import check_count
from keras_rgemma.evaluation.folder import EvaluationFolder
from keras_rgemma.evaluation.harness import NAME, HarnessModel
from keras_rgemma.evaluation.report import Line, Report, average
from keras_rgemma.evaluation.suites import AVERAGE, Row, published, rows_of
from keras_rgemma.state.fingerprint import fingerprint
from keras_rgemma.types import StrPath


class _Unavailable(Exception):
    """A task whose data, programs or packages are not there."""


class _Tasks(TaskManager):
    """Loads tasks of the harness; tells a task that cannot be loaded from a faulty model."""

    def prepare(self, task: str) -> None:
        """Loads a task, which the next `load` returns.

        Raises:
            _Unavailable: it cannot be loaded.
        """
        try:
            self._prepared = super().load([task])
        # Each task runs its own code and asks a hub: what is raised is of any type.
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            raise _Unavailable(f"{type(error).__name__}: {lines[0]}") from error

    def load(self, spec: Any) -> Any:
        """Returns the prepared task, which the harness asks for once."""
        prepared, self._prepared = self._prepared, None
        return prepared


# To look through the thousands of files of the harness takes seconds.
_tasks_with = functools.cache(_Tasks)


def evaluate(
    preset: StrPath,
    suite: str | Iterable[str] = "model-card",
    output: StrPath | None = None,
    *,
    batch_size: int | str = 8,
    dtype: str | None = None,
    revision: str | None = None,
    quantize: str | None = None,
    library: str = NAME,
    num_fewshot: int | None = None,
    limit: int | None = None,
    apply_chat_template: bool = False,
    system_instruction: str | None = None,
    run_unsafe_code: bool = False,
    column: str | None = None,
    include_path: StrPath | None = None,
    progress: bool = True,
) -> Report:
    """Measures a model on tasks of the harness, beside what was published of it.

    Everything is kept in a folder as it comes: the same call after a break asks no question again.

    Args:
        preset: str or path, a name, folder or handle as of `from_preset`.
        suite: str or iterable of str: "model-card" or "safety", the tables of the published model
            cards, or names of tasks of the harness.
        output: str or path of a folder; None for `evaluation-PRESET` in the working directory.
        batch_size: int or str, see `HarnessModel`, as for the next four.
        dtype: str, of weights and computation.
        revision: str, of a preset on a hub.
        quantize: None, "int8" or "int4".
        library: "keras-rgemma", or "keras-hub" for another model of KerasHub.
        num_fewshot: int, examples before each question; None for the numbers of the suite.
        limit: int, the first questions of each task alone, to try something out.
        apply_chat_template: bool, whether questions are asked as turns of a conversation, which
            instruction-tuned models expect.
        system_instruction: str, put before each question.
        run_unsafe_code: bool, whether programs that the model writes are run, which two rows of the
            model card need. Do that in a container alone.
        column: str, the published results to compare with, such as "RecurrentGemma 2B", where
            `preset` is a fine-tune or a folder.
        include_path: str or path of a folder with tasks of your own.
        progress: bool, whether rows and bars go to standard error.

    Returns:
        `Report`, which prints as a table. The folder has it as report.json and report.md.

    Raises:
        ValueError: a task, a column or an option is unknown, or the folder has other settings.

    Example:
    ```python
    report = evaluate("rgemma_2b_en", "piqa,arc_easy", limit=100)
    print(report)
    ```
    """
    preset = str(preset)
    if limit is not None:
        check_count("limit", limit)
    if num_fewshot is not None and num_fewshot < 0:
        raise ValueError(f"`num_fewshot` must be 0 or more. Received: {num_fewshot!r}.")
    if include_path is not None and not os.path.isdir(include_path):
        raise ValueError(
            f"`include_path` must be a folder with tasks. Received: {str(include_path)!r}."
        )
    tasks = _tasks_with(include_path=None if include_path is None else str(include_path))
    suite, rows = rows_of(suite, tasks.all_tasks)
    compared = published(suite, preset, column)
    folder = EvaluationFolder(
        output or f"evaluation-{_slug(preset)}",
        {
            "preset": str(pathlib.Path(preset).resolve()) if os.path.isdir(preset) else preset,
            "revision": revision,
            "dtype": dtype or keras.config.dtype_policy().name,
            "quantize": quantize,
            "library": library,
            "limit": limit,
            "chat template": apply_chat_template,
            "system": system_instruction,
            "backend": keras.config.backend(),
            **{name: importlib.metadata.version(name) for name in (NAME, "lm-eval")},
        },
    )
    model = None

    def loaded() -> HarnessModel:
        nonlocal model
        if model is None:
            model = HarnessModel(
                preset, batch_size, dtype, revision, quantize, library, progress=progress
            )
            folder.check_weights(_weights_of(model))
        return model

    lines = []
    for place, row in enumerate(rows, start=1):
        shots = row.num_fewshot if num_fewshot is None else num_fewshot
        reason = _reason(row, run_unsafe_code)
        if reason:
            lines.append(_line_without(row, shots, compared, reason, is_expected=True))
            continue
        name = _slug(row.task if shots is None else f"{row.task}-{shots}shot")
        result = folder.read(name)
        if progress:
            done = ", done before" if result else ""
            print(f"[{place}/{len(rows)}] {row.name}{done}", file=sys.stderr, flush=True)
        if result and os.path.isdir(preset):
            loaded()  # a model may have been saved anew under the name
        if result is None:
            try:
                tasks.prepare(row.task)
            except _Unavailable as error:
                reason = f"the task could not be loaded: {error}"
                lines.append(_line_without(row, shots, compared, reason))
                continue
            loaded()
            start = time.monotonic()
            with folder.answers() as store:
                results = lm_eval.simple_evaluate(
                    model=model,
                    tasks=[row.task],
                    task_manager=tasks,
                    num_fewshot=shots,
                    limit=limit,
                    use_cache=store,
                    log_samples=False,
                    apply_chat_template=apply_chat_template,
                    system_instruction=system_instruction,
                    confirm_run_unsafe_code=run_unsafe_code,
                )
            result = {**_of_task(results, row.task), "seconds": time.monotonic() - start}
            folder.write(name, result)
        lines += _lines(row, result, compared)
    if AVERAGE in compared:
        lines.append(average(AVERAGE, lines, compared[AVERAGE]))
    report = Report(preset, suite, folder.settings, tuple(lines))
    folder.write("report", report.to_dict())
    folder.write_text("report.md", str(report))
    return report


def _reason(row: Row, run_unsafe_code: bool) -> str:
    """Tells why a row cannot be measured with these options, "" if it can."""
    if not row.task:
        return row.note
    if row.runs_code and not run_unsafe_code:
        return "it runs programs that the model writes; allow that with `run_unsafe_code`"
    if row.variable and not os.environ.get(row.variable):
        return f"it needs the environment variable {row.variable}"
    return ""


def _line_without(
    row: Row,
    shots: int | None,
    compared: dict[str, float | None],
    reason: str,
    is_expected: bool = False,
) -> Line:
    """Returns the line of a row that was not measured."""
    return Line(
        row.name,
        row.task,
        shots if row.task else None,
        row.metric,
        published=compared.get(row.name),
        reason=reason,
        is_expected=is_expected,
    )


def _of_task(results: dict[str, Any], task: str) -> dict[str, Any]:
    """Picks what is kept of the harness' results: metrics, examples, questions and versions."""
    metrics = {**results["results"].get(task, {}), **results.get("groups", {}).get(task, {})}
    parts = results["n-samples"]
    shots = [n for name, n in results["n-shot"].items() if name in parts]
    return {
        "task": task,
        "num_fewshot": max(shots),
        "metrics": {x: y for x, y in metrics.items() if isinstance(y, (int, float))},
        "num_samples": sum(n["effective"] for n in parts.values()),
        "versions": {name: results["versions"].get(name) for name in parts},
    }


def _lines(row: Row, result: dict[str, Any], compared: dict[str, float | None]) -> list[Line]:
    """Returns the lines of a row: one of a model card has one, another each metric of its task."""
    metrics = result["metrics"]
    if row.metric and row.metric not in metrics:
        raise ValueError(
            f"The task {row.task!r} of this version of lm-eval has no metric {row.metric!r}, but "
            f"{sorted(metrics)}. Please report it."
        )
    names = [row.metric] if row.metric else [x for x in metrics if "_stderr," not in x]
    names = [x for x in names if "," in x]
    scale = 100.0 if row.metric else 1.0
    lines = []
    for name in names:
        stderr = metrics.get(name.replace(",", "_stderr,", 1))
        lines.append(
            Line(
                row.name,
                row.task if row.metric else "",
                result["num_fewshot"],
                name,
                scale * metrics[name],
                None if stderr is None else scale * stderr,
                compared.get(row.name),
                result["num_samples"],
                note=row.note,
            )
        )
    return lines


def _weights_of(model: HarnessModel) -> str | None:
    """Identifies the weights of a model; None for one of KerasHub."""
    return fingerprint(model.lm.backbone).checksums if model.has_state else None


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "model"
