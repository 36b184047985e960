"""Shows measured results beside published ones, as a table, Markdown and JSON."""

import dataclasses
import math
from typing import Any


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

    def __str__(self) -> str:
        """Writes a table in Markdown, its columns aligned, with the settings below it."""
        head = ["", "measured", "±", "published", "difference", "questions", "how it was asked"]
        rows = [head, *map(_cells, self.lines)]
        widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
        rules = ["-" * widths[0], *("-" * (n - 1) + ":" for n in widths[1:-1]), "-" * widths[-1]]
        rows.insert(1, rules)
        text = "\n".join(f"| {' | '.join(_aligned(row, widths))} |" for row in rows)
        settings = ", ".join(f"{x}: {y}" for x, y in self.settings.items() if y is not None)
        return f"# {self.preset}, {self.suite}\n\n{text}\n\n{settings}\n"


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
        _number(line.measured),
        _number(line.stderr),
        _number(line.published, "g"),
        _number(line.difference, "+.1f"),
        "" if line.num_samples is None else str(line.num_samples),
        text.replace("|", "\\|"),
    ]


def _number(value: float | None, form: str | None = None) -> str:
    if value is None:
        return ""
    return format(value, form or (".1f" if abs(value) >= 10 else ".2f" if value >= 1 else ".3g"))


def _aligned(cells: list[str], widths: list[int]) -> list[str]:
    """Pads cells: the first and the last on the right, numbers on the left."""
    first, last = cells[0].ljust(widths[0]), cells[-1].ljust(widths[-1])
    between = zip(cells[1:-1], widths[1:-1], strict=True)
    return [first, *(text.rjust(width) for text, width in between), last]
