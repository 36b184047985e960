"""The code of README.md, CONTRIBUTING.md and docs/ runs as it stands, and their commands parse.

Each page runs on one backend. tests/pages.py says what stands in for what no test can fetch.
"""

import os
import pathlib
import socket
import subprocess
import sys
import zlib

import keras
import pytest

import commands
import pages
import stand_ins
from backend_independent import backend_independent

ROOT = pages.ROOT
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
WITH_PYTHON = [
    path for path in PAGES if any(x.language == "python" for x in pages.blocks(path.read_text()))
]
# Of pages of which one backend takes a fraction of the time, or the only one that they are about.
BACKENDS = {
    "README.md": "torch",
    "docs/data.md": "torch",
    "docs/devices.md": "jax",
    "docs/evaluation.md": "tensorflow",
    "docs/plan.md": "tensorflow",
    "docs/several_processes.md": "jax",
    "docs/speed.md": "torch",
}
# Pages that are about several devices run in a process which has two.
IN_A_PROCESS = ("docs/devices.md", "docs/several_processes.md")
# Comments of these pages show what comes.
WITH_OUTPUTS = ("README.md",)
# Messages are no commands, whatever they begin with.
WITHOUT_COMMANDS = ("docs/errors.md",)
# Programs of others, which the tests do not ask.
OTHERS = {"export", "gcloud", "grep", "hf", "git", "modelscope"}


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def backend_of(path):
    """The backend that a page runs on: a new page gets one by its name."""
    names = ("jax", "tensorflow", "torch")
    return BACKENDS.get(name_of(path), names[zlib.crc32(name_of(path).encode()) % 3])


@pytest.fixture
def as_before(monkeypatch, tmp_path):
    """Compilers of devices stand in for those that are not here; choices end with the test."""
    stand_ins.compile_for_devices(monkeypatch)
    monkeypatch.setattr("keras_rgemma.backend._of_process", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.slow
@pytest.mark.parametrize("path", WITH_PYTHON, ids=name_of)
def test_the_code_of_a_page_runs(path, tmp_path, as_before):
    if keras.config.backend() != backend_of(path):
        pytest.skip(f"runs on {backend_of(path)} alone")
    folder = tmp_path / "page"
    folder.mkdir()
    if name_of(path) in IN_A_PROCESS:
        run_in_a_process(path)
        return
    outputs = pages.run(path, folder, shows=name_of(path) in WITH_OUTPUTS)
    assert [x for x in outputs if x[1] != x[2]] == []
    assert (len(outputs) > 3) == (name_of(path) in WITH_OUTPUTS)


def run_in_a_process(path):
    """Runs a page with two virtual devices, as the only one of several processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "pages.py"), str(path)],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join((str(ROOT / "tests"), str(ROOT))),
            "XLA_FLAGS": flags,
            "KERAS_DISTRIBUTION_JOB_ADDRESSES": f"127.0.0.1:{port}",
            "KERAS_DISTRIBUTION_NUM_PROCESSES": "1",
            "KERAS_DISTRIBUTION_PROCESS_ID": "0",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@backend_independent
def test_pages_are_spread_over_the_backends():
    assert {name_of(path) for path in WITH_PYTHON} >= set(BACKENDS)
    assert {backend_of(path) for path in WITH_PYTHON} == {"jax", "tensorflow", "torch"}


@backend_independent
def test_commands_of_pages_are_parsed():
    """Those of benchmarks/ too: each page says how it was made."""
    found = []
    for path in [*PAGES, *sorted((ROOT / "benchmarks").glob("*.md"))]:
        if name_of(path) not in WITHOUT_COMMANDS:
            lines = commands.of_page(path.read_text(encoding="utf-8"))
            found += [(f"{name_of(path)}:{number}", words) for number, words in lines]
    assert len(found) > 80
    programs = {pathlib.PurePath(words[0]).name for _, words in found}
    assert programs - OTHERS == {"keras-rgemma", "pip", "python", "python3"}
    first = {tuple(words): at for at, words in reversed(found)}
    wrong = {f"{at}: {' '.join(words)}": commands.check(words) for words, at in first.items()}
    assert {command: reason for command, reason in wrong.items() if reason} == {}


@backend_independent
def test_wrong_commands_are_found():
    for line, words in (
        ("keras-rgemma plan rgemma_2b_en --device v5e-1 --lenght 8", "--lenght"),
        ("keras-rgemma lm-eval --taskz piqa", "--taskz"),
        ("keras-rgemma write x", "invalid choice: 'write'"),
        ('pip install -q "keras-rgemma[jaks]"', "['jaks']"),
        ("KERAS_BACKEND=jax python examples/none.py --x 1", "examples/none.py"),
        (".venv/bin/python -m pytest tests/nowhere", "tests/nowhere"),
        ("python examples/lora.py --ephocs 2", "--ephocs"),
        ("python3 tests/laws/long_text.py --x", "takes no arguments"),
        ("python -m keras_rgemma.benchmarks.load --folder x --sice 2b", "--sice"),
    ):
        (command,) = commands.split(line)
        assert words in commands.check(command)


@backend_independent
def test_blocks_and_commands_are_read():
    text = (
        "# A\n\n```bash\nA=1 python x.py \\\n  --b 'c d' > e  # f\npip install g && h\n```\n\n"
        "<!-- python\nx = 1\n-->\n- item\n  ```python\n  y = x\n  ```\n\nSay `keras-rgemma plan i\n"
        "--to a|b` or `keras-rgemma chat`, `python -m j k`.\n"
    )
    assert [(x.language, x.code, x.line, x.is_hidden) for x in pages.blocks(text)] == [
        ("bash", "A=1 python x.py \\\n  --b 'c d' > e  # f\npip install g && h\n", 4, False),
        ("python", "x = 1\n", 10, True),
        ("python", "y = x\n", 14, False),
    ]
    assert commands.of_page(text) == [
        (5, ["python", "x.py", "--b", "c d"]),
        (6, ["pip", "install", "g"]),
        (6, ["h"]),
        (17, ["keras-rgemma", "plan", "i", "--to", "a"]),
        (18, ["python", "-m", "j", "k"]),
    ]
    code = 'load("rgemma_2b_en", "rgemma_2b_en_x", "hf://google/recurrentgemma-2b-it")'
    assert pages.replace_stand_ins(code) == (
        'load("rgemma_tiny_en", "rgemma_2b_en_x", "rgemma_tiny_en")'
    )


@backend_independent
def test_outputs_are_compared(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nx = 'a'\nx.upper()  # aside\n# B\nx  # 'a'\n```\n<!-- python\nx\n# c\n-->\n",
        encoding="utf-8",
    )
    assert pages.run(page, tmp_path, shows=True) == [(3, "B", "A"), (5, "'a'", "'a'")]
    assert pages.run(page, tmp_path) == []
