"""Draws measurements as lines, readable on a light and on a dark page.

    pip install "keras-rgemma[bench]"

The background is transparent, and every colour is one that stands out from white and from black.
"""

import pathlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

from keras_rgemma.types import StrPath

TEXT = "#727a84"
COLORS = {"jax": "#2f81f7", "tensorflow": "#d55e00", "torch": "#009e73"}
NAMES = {"jax": "JAX", "tensorflow": "TensorFlow", "torch": "PyTorch"}
_MARKERS = {"jax": "o", "tensorflow": "s", "torch": "^"}
_PANEL = (3.9, 2.9)  # inches
_MOST_TICKS = 8
_SETTINGS = {
    "axes.edgecolor": TEXT,
    "axes.labelcolor": TEXT,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": TEXT,
    "axes.titlesize": 10,
    "font.family": "sans-serif",
    "font.size": 9,
    "grid.alpha": 0.25,
    "grid.color": TEXT,
    "legend.labelcolor": TEXT,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "keras-rgemma",  # the same numbers give the same file
    "text.color": TEXT,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
}


class Line(NamedTuple):
    """Holds the points of one model on one backend.

    Attributes:
        package: str, the name of the model in the legend.
        backend: str.
        points: list of pairs of numbers, x and y.
        is_ours: bool, whether to draw it solid; others are dashed.
    """

    package: str
    backend: str
    points: list[tuple[float, float]]
    is_ours: bool


class Panel(NamedTuple):
    """Describes one pair of axes, both logarithmic.

    Attributes:
        title: str.
        x_label: str, with its unit.
        y_label: str, with its unit.
        lines: list of `Line`.
        notes: dict of a point to a short text beside it.
    """

    title: str
    x_label: str
    y_label: str
    lines: list[Line]
    notes: dict[tuple[float, float], str] | None = None


def draw(path: StrPath, panels: Sequence[Panel]) -> None:
    """Draws panels beside each other into a file.

    Args:
        path: path of the file, whose suffix is the format: `.svg` or `.png`.
        panels: list of `Panel`.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: there is no point to draw.
    """
    panels = [panel for panel in panels if any(line.points for line in panel.lines)]
    if not panels:
        raise ValueError(
            f"There is nothing to draw in {path}: no measurement has a result. Measure again with "
            "settings that this machine can hold."
        )
    matplotlib = _matplotlib()
    with matplotlib.rc_context(_SETTINGS):
        size = (_PANEL[0] * len(panels), _PANEL[1])
        figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
        for axes, panel in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
        ):
            _draw_panel(matplotlib, axes, panel)
        _draw_legend(matplotlib, figure, panels)
        path = pathlib.Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, transparent=True, metadata=metadata, dpi=144)


def _matplotlib() -> ModuleType:
    try:
        import matplotlib
        import matplotlib.figure
        import matplotlib.lines
        import matplotlib.ticker
    except ImportError as error:
        raise ImportError(
            "Plots are drawn with matplotlib. Install it with `pip install matplotlib`, or the "
            'package with `pip install "keras-rgemma[bench]"`.'
        ) from error
    return matplotlib


def _style(line: Line) -> dict[str, Any]:
    """Returns how a line looks."""
    color = COLORS[line.backend]
    return {
        "color": color,
        "linestyle": "-" if line.is_ours else (0, (4, 2)),
        "marker": _MARKERS[line.backend],
        "markerfacecolor": color if line.is_ours else "none",
        "markersize": 4.5,
        "linewidth": 1.6,
    }


def _draw_panel(matplotlib: Any, axes: Any, panel: Panel) -> None:
    for line in panel.lines:
        if line.points:
            axes.plot(*zip(*line.points, strict=True), **_style(line))
    axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
    axes.set(xscale="log", yscale="log")
    axes.grid(True)
    axes.margins(0.08, 0.12)
    xs, ys = ({point[i] for line in panel.lines for point in line.points} for i in (0, 1))
    steps = (1.0, 2.0, 5.0) if max(ys) < 300 * min(ys) else (1.0,)
    axes.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=steps))
    axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator())
    if len(xs) <= _MOST_TICKS:
        axes.set_xticks(sorted(xs))
        axes.minorticks_off()
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:,g}"))
        axis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    for point, text in (panel.notes or {}).items():
        axes.annotate(text, point, (0, 5), textcoords="offset points", ha="center", fontsize=7)


def _draw_legend(matplotlib: Any, figure: Any, panels: Sequence[Panel]) -> None:
    """Says below the panels which colour is which backend, and which dashes which model."""
    lines = [line for panel in panels for line in panel.lines if line.points]
    used = {line.backend: line for line in lines}
    backends = {backend: used[backend] for backend in COLORS if backend in used}
    models = {line.package: line for line in lines}
    entries = {
        NAMES[backend]: {**_style(line), "linestyle": ""} for backend, line in backends.items()
    }
    for name, line in models.items():
        look = {**_style(line), "color": TEXT, "marker": ""}
        entries[name] = look
    for look in entries.values():
        look["markerfacecolor"] = look["color"]
    handles = [
        matplotlib.lines.Line2D([], [], label=label, **look) for label, look in entries.items()
    ]
    columns = 2 if len(panels) == 1 else len(handles)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
