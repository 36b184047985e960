"""CONTRIBUTING.md names files that exist."""

import pathlib
import re

from backend_independent import backend_independent

ROOT = pathlib.Path(__file__).parent.parent
# What a change adds, in capitals, and what stands for a class of files.
PLACEHOLDER = re.compile(r"[A-Z]{2}")
TOP = ("tests/", "benchmarks/", "examples/", "presets/", "keras_rgemma/", "README", "CHANGELOG")


@backend_independent
def test_every_path_exists():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    where = text[text.index("## Where a thing goes") :]
    paths = re.findall(r"`([\w/.]+(?:\.py|\.md|\.toml|/))`", where)
    paths = [path for path in paths if path.startswith(TOP[-2:]) or not PLACEHOLDER.search(path)]
    paths = [path for path in paths if path != "reference.py"]  # of every operation
    assert len(paths) > 50
    roots = (ROOT / "keras_rgemma", ROOT)
    assert [x for x in paths if not any((root / x).exists() for root in roots)] == []
