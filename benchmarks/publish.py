"""Prints and writes what a script of this folder has found."""

import json

from keras_rgemma.files import write_json


def publish(folder, name, report, page):
    """Prints a page and the report behind it, and writes both if they have a name.

    Args:
        folder: `pathlib.Path`, for NAME.md and results/NAME.json.
        name: str, or None to print only.
        report: dict, in the last line that is printed.
        page: str, in Markdown.
    """
    print(page)
    print(json.dumps(report))
    if name:
        path = folder / "results" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, report)
        (folder / f"{name}.md").write_text(page, encoding="utf-8")
