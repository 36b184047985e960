"""What a release names twice is the same in each place."""

import pathlib
import re

import keras_rgemma
from backend_independent import backend_independent

ROOT = pathlib.Path(__file__).parent.parent


@backend_independent
def test_the_version_is_one():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.+)$", citation, re.M) == [keras_rgemma.__version__]
    assert re.findall(r"^## ([\d.]+)", changelog, re.M)[0] == keras_rgemma.__version__


@backend_independent
def test_a_citation_has_what_the_format_asks_for():
    import yaml

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= {*citation}
    assert all(reference["title"] and reference["authors"] for reference in citation["references"])
