"""Lists the built-in presets."""

import functools
import json
import pathlib
from typing import Any

_PACKAGE = pathlib.Path(__file__).resolve().parent.parent
# In a wheel the presets lie inside the package, in a checkout beside it.
_ROOTS = (_PACKAGE / "presets", _PACKAGE.parent / "presets")
EMBEDDED = "embedded"  # the origin of weights that lie in the preset itself


@functools.cache
def presets() -> dict[str, dict[str, Any]]:
    """Reads the metadata of all presets by name, in the order of their size.

    Returns:
        dict of name to a dict with `description` (str), `parameter_count` (int), `path` (str, the
        folder of the configs), `weights` (their origin: "embedded", the handle of a hub
        repository, or None when no weights were published), `download_bytes` (the approximate
        size of a download, int).
    """
    root = next((root for root in _ROOTS if root.is_dir()), None)
    if root is None:
        raise FileNotFoundError(
            f"The folder of the presets is missing; looked for {[str(r) for r in _ROOTS]}. "
            "Install keras-rgemma again."
        )
    entries = []
    for path in root.glob("*/metadata.json"):
        metadata = json.loads(path.read_text(encoding="utf-8"))
        entries.append(
            (
                path.parent.name,
                {
                    "description": metadata["description"],
                    "parameter_count": metadata["parameter_count"],
                    "path": str(path.parent),
                    "weights": metadata["weights"],
                    "download_bytes": metadata.get("download_bytes", 0),
                },
            )
        )
    return dict(sorted(entries, key=lambda item: (item[1]["parameter_count"], item[0])))
