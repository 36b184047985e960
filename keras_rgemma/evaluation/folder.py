"""Keeps what an evaluation has measured, so that it goes on after a break."""

import pathlib
from typing import Any

from keras_rgemma.files import new_file, read_json, write_json
from keras_rgemma.types import StrPath

SETTINGS = "settings.json"
ANSWERS = "answers"  # the harness' store of answers, to whose name it adds `_rank0.db`


class EvaluationFolder:
    """Keeps settings, answers and results, so that an interrupted evaluation goes on.

    Args:
        path: str or path.
        settings: dict of what results depend on.

    Raises:
        ValueError: the folder is of other settings, or holds something else.
    """

    path: pathlib.Path
    settings: dict[str, Any]

    def __init__(self, path: StrPath, settings: dict[str, Any]) -> None:
        self.path = pathlib.Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"`output` must be a folder. Received the file {str(path)!r}.")
        if (self.path / SETTINGS).exists():
            kept = read_json(self.path / SETTINGS)
            self.settings = {**settings, "weights": kept.get("weights")}
            self._check({**kept, "weights": None}, {**settings, "weights": None})
            return
        if self.path.exists() and any(self.path.iterdir()):
            raise ValueError(
                f"{str(path)!r} holds something, and no evaluation. Choose another `output`."
            )
        self.settings = {**settings, "weights": None}
        self.path.mkdir(parents=True, exist_ok=True)
        self._write(SETTINGS, self.settings)

    def check_weights(self, weights: str | None) -> None:
        """Raises ValueError if results in the folder are of other weights; keeps theirs if none."""
        if self.settings["weights"] is None:
            self.settings["weights"] = weights
            self._write(SETTINGS, self.settings)
        self._check(self.settings, {**self.settings, "weights": weights})

    def _check(self, kept: dict[str, Any], settings: dict[str, Any]) -> None:
        names = [x for x in sorted({*kept, *settings}) if kept.get(x) != settings.get(x)]
        if names:
            told = ", ".join(f"{x}: {kept.get(x)!r}, now {settings.get(x)!r}" for x in names)
            raise ValueError(
                f"The results in {str(self.path)!r} are of other settings ({told}). Choose another "
                "`output`, or delete that folder."
            )

    def read(self, name: str) -> dict[str, Any] | None:
        """Reads the result of a row, None if it has none."""
        path = self.path / f"{name}.json"
        return read_json(path) if path.exists() else None

    def write(self, name: str, result: dict[str, Any]) -> None:
        """Writes the result of a row."""
        self._write(f"{name}.json", result)

    def write_text(self, name: str, text: str) -> None:
        """Writes a file."""
        with new_file(self.path / name) as partial:
            partial.write_text(text, encoding="utf-8")

    def _write(self, name: str, contents: dict[str, Any]) -> None:
        with new_file(self.path / name) as partial:
            write_json(partial, contents)
