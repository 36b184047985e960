"""Shows measured results beside published ones, as a table, Markdown and JSON."""

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from keras_rgemma.files import read_json
from keras_rgemma.types import StrPath


@dataclasses.dataclass(frozen=True)
class Line:
    """Describes one line of a report.

    Attributes:
        name: str, of the row.
        task: str, of the harness; "" for none.
        num_fewshot: int or None, the examples before each question.
        metric: str, "METRIC,FILTER" of the harness.
        measured: float or None, in percent where the row is one of a model card.
        stderr: float or None, the standard error of `measured`, in the same unit.
        published: float or None, in percent.
        num_samples: int or None, the questions that were asked.
        reason: str, why nothing was measured; "" otherwise.
        is_expected: bool, whether the reason lies in the harness or in an option, not in a failure.
        note: str, what differs from the published setting.
    """

    name: str
    task: str = ""
    num_fewshot: int | None = None
    metric: str = ""
    measured: float | None = None
    stderr: float | None = None
    published: float | None = None
    num_samples: int | None = None
    reason: str = ""
    is_expected: bool = False
    note: str = ""

    @property
    def difference(self) -> float | None:
        """Returns measured less published, None if either is missing."""
        known = self.measured is not None and self.published is not None
        return self.measured - self.published if known else None


@dataclasses.dataclass(frozen=True)
class Report:
    """Holds the results of a suite.

    Attributes:
        preset: str.
        suite: str, "model-card", "safety" or names of tasks.
        settings: dict, what the results depend on.
        lines: tuple of `Line`.
    """

    preset: str
    suite: str
    settings: dict[str, Any]
    lines: tuple[Line, ...]

    @property
    def failures(self) -> list[Line]:
        """Lists the lines that could have been measured and were not."""
        return [line for line in self.lines if line.reason and not line.is_expected]

    def to_dict(self) -> dict[str, Any]:
        """Returns everything that is known as values of JSON."""
        lines = [{**dataclasses.asdict(x), "difference": x.difference} for x in self.lines]
        return {
            "preset": self.preset,
            "suite": self.suite,
            "settings": self.settings,
            "results": lines,
        }

    @classmethod
    def from_dict(cls, contents: dict[str, Any]) -> "Report":
        """Returns the report that `to_dict` described."""
        names = {field.name for field in dataclasses.fields(Line)}
        lines = [
            Line(**{name: x for name, x in line.items() if name in names})
            for line in contents["results"]
        ]
        return cls(contents["preset"], contents["suite"], contents["settings"], tuple(lines))

    def __str__(self) -> str:
        """Writes a table in Markdown, its columns aligned, with the settings below it."""
        head = ["", "measured", "±", "published", "difference", "questions", "how it was asked"]
        settings = ", ".join(f"{x}: {y}" for x, y in self.settings.items() if y is not None)
        table = _table([head, *map(_cells, self.lines)], has_text=True)
        return f"# {self.preset}, {self.suite}\n\n{table}\n\n{settings}\n"


def read_report(folder: StrPath) -> Report:
    """Reads the report in the folder of an evaluation.

    Raises:
        ValueError: there is none, or it is not whole.
    """
    path = pathlib.Path(folder) / "report.json"
    if not path.is_file():
        raise ValueError(
            f"{str(folder)!r} holds no report.json. Name the folder of an evaluation that has "
            "ended."
        )
    try:
        return Report.from_dict(read_json(path))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{str(path)!r} is no report of an evaluation. Run the command that wrote it again."
        ) from error


def side_by_side(reports: Sequence[Report]) -> str:
    """Writes the measured results of several models into one table in Markdown.

    A row has the models that were asked alike: the same task, questions, examples and metric, as
    turns or not, and with the same system instruction.

    Args:
        reports: sequence of `Report`; the rows are those of the first.

    Returns:
        str.
    """
    found = [{_key(report, x): x for x in report.lines} for report in reports]
    rows = [["", *map(_column, reports)]]
    for line in reports[0].lines:
        same = [lines.get(_key(reports[0], line)) for lines in found]
        rows.append([_name_in_table(line), *(_measured(x) if x else "" for x in same)])
    return _table(rows)


def average(name: str, lines: list[Line], published: float | None) -> Line:
    """Averages the measured results of lines.

    Args:
        name: str.
        lines: list of `Line`.
        published: float or None.

    Returns:
        `Line`; without a result if one of the lines has none.
    """
    missing = sum(line.measured is None for line in lines)
    if missing:
        reason = f"{missing} of its {len(lines)} rows were not measured"
        return Line(name, published=published, reason=reason, is_expected=True)
    errors = [line.stderr or 0.0 for line in lines]
    return Line(
        name,
        measured=sum(line.measured for line in lines) / len(lines),
        stderr=math.hypot(*errors) / len(lines),
        published=published,
        note=f"of {len(lines)} rows",
    )


def _key(report: Report, line: Line) -> tuple[Any, ...]:
    """Identifies what was asked, and how."""
    how = (report.settings.get(name) for name in ("chat template", "system"))
    return line.name, line.task, line.num_fewshot, line.metric, line.num_samples, *how


def _column(report: Report) -> str:
    """Names a model, with what tells it from another one of the same preset."""
    parts = (report.preset, report.settings.get("dtype"), report.settings.get("quantize"))
    return ", ".join(filter(None, parts))


def _name_in_table(line: Line) -> str:
    metric = "" if line.task else line.metric.removesuffix(",none").replace(",", " ")
    return f"{line.name} {metric}".strip()


def _measured(line: Line) -> str:
    error = "" if line.stderr is None else f" ± {_number(line.stderr, _form(line))}"
    return f"{_number(line.measured, _form(line))}{error}" if line.measured is not None else ""


def _cells(line: Line) -> list[str]:
    """Returns the texts of a line's columns."""
    how = [line.task] if line.task else []
    if line.num_fewshot is not None:
        how.append(f"{line.num_fewshot}-shot")
    how += [line.metric.removesuffix(",none").replace(",", " ")] if line.metric else []
    text = ", ".join(how)
    remark = f"not measured: {line.reason}" if line.reason else line.note
    text = f"{text} ({remark})" if text and remark else text or remark
    return [
        line.name,
        _number(line.measured, _form(line)),
        _number(line.stderr, _form(line)),
        _number(line.published, "g"),
        _number(line.difference, "+.1f"),
        "" if line.num_samples is None else str(line.num_samples),
        text.replace("|", "\\|"),
    ]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _form(line: Line) -> str:
    """Returns the format of a line's numbers: percentages have one decimal."""
    return ".1f" if line.task or not line.metric else ".4g"


def _table(rows: list[list[str]], has_text: bool = False) -> str:
    """Aligns rows of cells as a table of Markdown: the first column on the left, numbers right.

    Args:
        rows: list of lists of str; the first has the names of columns.
        has_text: bool, whether the last column is text.
    """
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    is_text = [i == 0 or (has_text and i == len(widths) - 1) for i in range(len(widths))]
    rules = [
        "-" * n if left else "-" * (n - 1) + ":" for n, left in zip(widths, is_text, strict=True)
    ]
    return "\n".join(
        f"| {' | '.join(str.ljust(x, n) if left else str.rjust(x, n) for x, n, left in cells)} |"
        for cells in (zip(row, widths, is_text, strict=True) for row in [rows[0], rules, *rows[1:]])
    )
