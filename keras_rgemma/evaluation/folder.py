"""Keeps what an evaluation has measured, so that it goes on after a break."""

import contextlib
import logging
import pathlib
import sqlite3
from collections.abc import Iterator
from typing import Any

from keras_rgemma.files import new_file, read_json, write_json
from keras_rgemma.types import StrPath

SETTINGS = "settings.json"
ANSWERS = "answers"  # the harness' store of answers, to whose name it adds `_rank0.db`
_WRITTEN_ANYWAY = {SETTINGS, "report.json", "report.md"}  # with nothing measured, too


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
            kept = self._kept()
            if not self._has_results():  # such as after a mistyped option
                kept = settings
            self.settings = {**settings, "weights": kept.get("weights")}
            self._check({**kept, "weights": None}, {**settings, "weights": None})
            self._write(SETTINGS, self.settings)
            return
        if self.path.exists() and any(self.path.iterdir()):
            raise ValueError(
                f"{str(path)!r} holds something, and no evaluation. Choose another `output`."
            )
        self.settings = {**settings, "weights": None}
        self.path.mkdir(parents=True, exist_ok=True)
        self._write(SETTINGS, self.settings)

    def _kept(self) -> dict[str, Any]:
        try:
            return read_json(self.path / SETTINGS)
        except ValueError as error:
            raise ValueError(
                f"The settings of the evaluation in {str(self.path)!r} cannot be read, so nobody "
                f"knows what its results are of: {error.__cause__}. Choose another `output`, or "
                "delete that folder."
            ) from error

    def _has_results(self) -> bool:
        return any(x.name not in _WRITTEN_ANYWAY for x in self.path.iterdir())

    @contextlib.contextmanager
    def answers(self) -> Iterator[str]:
        """Opens the harness' store of answers: yields what it calls `use_cache`.

        Raises:
            RuntimeError: answers can be neither read nor written.
        """
        logger = logging.getLogger("sqlitedict")  # it prints the stack of each of its threads
        level = logger.level
        file = self.path / f"{ANSWERS}_rank0.db"
        try:
            if file.exists():  # the harness' reader leaves a thread behind at a broken file
                with contextlib.closing(sqlite3.connect(file)) as database:
                    database.execute("select count(*) from sqlite_master").fetchone()
            logger.setLevel(logging.CRITICAL)
            yield str(self.path / ANSWERS)
        except sqlite3.Error as error:
            raise RuntimeError(
                f"The answers in {str(file)!r} cannot be kept: {error}. Make room on the disk, "
                "allow writing there, or delete that file if it is damaged: rows that are done "
                "stay. The same command goes on then."
            ) from error
        finally:
            logger.setLevel(level)

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
        """Reads the result of a row, None if it has none that is whole: its answers are kept."""
        try:
            result = read_json(self.path / f"{name}.json")
        except ValueError:
            return None
        return result if "metrics" in result else None

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
