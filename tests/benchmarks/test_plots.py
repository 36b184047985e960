"""Plots are readable on light and dark pages, and the same numbers give the same file."""

import sys

import pytest

from backend_independent import backend_independent
from keras_rgemma.benchmarks import plots

pytestmark = backend_independent


def panel(points=((1000, 50), (10_000, 51), (100_000, 49))):
    lines = [
        plots.Line(name, backend, list(points), is_ours)
        for name, is_ours in (("Mine", True), ("Theirs", False))
        for backend in plots.COLORS
    ]
    return plots.Panel("Writing", "context, tokens", "tokens a second", lines)


def luminance(color):
    """The relative luminance of "#rrggbb", as WCAG defines it."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("page", ["#ffffff", "#0d1117"])
def test_colors_stand_out(page):
    def contrast(color):
        low, high = sorted([luminance(page), luminance(color)])
        return (high + 0.05) / (low + 0.05)

    assert contrast(plots.TEXT) > 4  # between 3 for large letters and 4.5 for all
    assert min(map(contrast, plots.COLORS.values())) > 3  # as WCAG asks of graphics


def test_a_picture_says_what_it_shows(tmp_path):
    paths = [tmp_path / name / "picture.svg" for name in ("first", "second")]
    for path in paths:
        plots.draw(path, [panel(), panel()._replace(lines=[])])
    texts = [path.read_text() for path in paths]
    assert texts[0] == texts[1]
    names = ("Mine", "Theirs", *plots.NAMES.values(), "context, tokens", "tokens a second")
    for name in (*names, "Writing", "1,000", "100,000"):
        assert f">{name}</text>" in texts[0], name
    assert len(texts[0]) < 60_000
    plots.draw(tmp_path / "picture.png", [panel()])
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_to_draw_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="nothing to draw"):
        plots.draw(tmp_path / "picture.svg", [panel(points=())])


def test_without_matplotlib_the_error_tells_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"keras-rgemma\[bench\]"):
        plots.draw(tmp_path / "picture.svg", [panel()])
