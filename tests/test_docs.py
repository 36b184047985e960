"""The code of the pages in docs/ runs as it stands."""

import pathlib
import re

import pytest

from backend_independent import backend_independent

DOCS = pathlib.Path(__file__).parent.parent / "docs"


@backend_independent
@pytest.mark.parametrize("name", ["data.md"])
def test_the_code_of_a_page_runs(name):
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(encoding="utf-8"), re.S)
    assert len(blocks) > 3
    exec(compile("\n".join(blocks), name, "exec"), {"__name__": "docs"})
