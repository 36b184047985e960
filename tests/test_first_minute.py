"""The first minute of a new user: what README.md says first, and all that the terminal then shows.

    KERAS_BACKEND=jax python tests/test_first_minute.py

writes the transcript of a backend, `first_minute/BACKEND.txt`, anew.
"""

import os
import pathlib
import re
import subprocess
import sys
import tempfile

import keras
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
HERE = ROOT / "tests" / "first_minute"
COMMANDS = (
    "keras-rgemma --version",
    "keras-rgemma presets",
    'keras-rgemma generate "In the beginning" --max-new-tokens 24',
)
# Set for tests alone, or by whoever runs them.
NOT_A_USERS = ("TF_CPP_MIN_LOG_LEVEL", "XLA_FLAGS", "PYTHONWARNINGS")


def first(language):
    """The first block of code in README.md in a language, str."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.search(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[1]


def steps(backend):
    """Triples of what a user types, the command that is run for it, and its standard input."""
    typed = first("bash").strip().split(" && ")[-1].split()
    assert typed[0].startswith("KERAS_BACKEND=") and typed[1].endswith("/python")
    yield " ".join(["python", *typed[2:]]), [sys.executable, *typed[2:]], ""
    yield "python", [sys.executable, "-u", str(HERE / "session.py")], first("python")
    for command in COMMANDS:
        words = re.findall(r'"([^"]*)"|(\S+)', command)
        arguments = [quoted or plain for quoted, plain in words][1:]
        yield command, [sys.executable, "-m", "keras_rgemma.cli", *arguments], ""


def transcript(backend, folder):
    """All that the terminal shows, str: standard output and standard error as they come.

    Args:
        backend: str.
        folder: the working directory, where the session leaves its files.
    """
    environment = {name: x for name, x in os.environ.items() if name not in NOT_A_USERS}
    environment |= {
        "KERAS_BACKEND": backend,
        "PYTHONPATH": str(ROOT),
        "HF_HOME": str(pathlib.Path(folder) / "cache"),  # of a new user
        "COLUMNS": "100",
    }
    (pathlib.Path(folder) / "examples").symlink_to(ROOT / "examples")
    shown = []
    for typed, command, given in steps(backend):
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            input=given.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        output = done.stdout.decode()
        assert done.returncode == 0, output
        shown.append(f"$ {typed}\n{output}")
    return normalized("\n".join(shown))


def normalized(text):
    """Replaces what is another in each run: times in Keras' progress bar, and addresses."""
    text = re.sub(r"\d+m?s \d+m?s/step", "TIME", seen(text))
    return re.sub(r"\bat 0x[0-9a-f]+", "at 0x...", text)


def seen(text):
    """What a terminal without colours shows at last, where a line is written over itself."""
    lines = []
    for line in re.sub(r"\x1b\[\d*m", "", text).split("\n"):
        shown, place = [], 0
        for character in line:
            if character == "\b":
                place -= 1
            elif character == "\r":
                place = 0
            else:
                shown[place : place + 1] = [character]
                place += 1
        lines.append("".join(shown).rstrip())
    return "\n".join(lines)


@pytest.mark.slow
def test_the_terminal_shows_the_programs_own_words(tmp_path):
    backend = keras.config.backend()
    expected = (HERE / f"{backend}.txt").read_text(encoding="utf-8")
    assert transcript(backend, tmp_path) == expected


if __name__ == "__main__":
    name = keras.config.backend()
    with tempfile.TemporaryDirectory() as place:
        (HERE / f"{name}.txt").write_text(transcript(name, place), encoding="utf-8")
