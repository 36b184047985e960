"""Every preset has a model card, and what it tells is what is published and what is there."""

import json
import pathlib
import re

import pytest

from backend_independent import backend_independent
from keras_rgemma.evaluation.suites import published

PRESETS = pathlib.Path(__file__).parent.parent / "presets"
NAMES = sorted(path.name for path in PRESETS.iterdir())
GOOGLES = [name for name in NAMES if name.startswith("rgemma_") and "tiny" not in name]


def card(name):
    return (PRESETS / name / "README.md").read_text(encoding="utf-8")


def metadata(name):
    return json.loads((PRESETS / name / "metadata.json").read_text(encoding="utf-8"))


@backend_independent
@pytest.mark.parametrize("name", NAMES)
def test_a_card_tells_size_licence_and_limits(name):
    text = card(name)
    assert text.startswith(f"# {name}\n")
    assert f"{metadata(name)['parameter_count']:,}" in text
    assert "icence" in text and "imits" in text


@backend_independent
@pytest.mark.parametrize("name", GOOGLES)
def test_a_card_of_googles_has_the_published_results(name):
    text, facts = card(name), metadata(name)
    assert len(GOOGLES) == 4
    assert f'from_preset("{name}"' in text and "https://ai.google.dev/gemma/terms" in text
    assert facts["weights"].removeprefix("hf://") in text
    assert f"{facts['download_bytes'] / 1e9:.1f} GB" in text
    tables = [
        {row: float(value) for row, value in re.findall(r"^\| (.+?) \| ([\d.]+) \|$", part, re.M)}
        for part in text.split("| | published |")[1:]
    ]
    expected = [published(suite, name) for suite in ("model-card", "safety")]
    assert tables == [table for table in expected if table]
