"""Installs the wheel with one extra only, and types the lines of README.md there, word for word.

    python tests/smoke_wheel.py [jax tensorflow torch]

builds the wheel, makes an empty environment for each backend in a folder of its own, away from the
checkout, installs the wheel with that extra alone (pip chooses the versions, as for any user), and
runs there: the first command of README.md, its blocks of Python in one session, and the commands
`--version`, `presets` and `generate`. It fails if a line fails, or shows another text than the one
beside it. Each backend takes some minutes and gigabytes of packages; tests/smoke_wheel.md is what
came.
"""

import argparse
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import venv

import pages

BACKENDS = ("jax", "tensorflow", "torch")
REPORT = pathlib.Path(__file__).with_suffix(".md")
SESSION = """
import sys
sys.path.insert(0, {tests!r})
import pages
sys.path.pop(0)
outputs = pages.run({readme!r}, ".", shows=True)
import keras, keras_rgemma
assert {tests!r} not in keras_rgemma.__file__, keras_rgemma.__file__
assert keras.config.backend() == {backend!r}
wrong = [x for x in outputs if x[1] != x[2]]
assert len(outputs) > 3 and not wrong, wrong
print(len(outputs), "outputs are those of README.md")
"""
SHOWN = ("keras-rgemma", "keras", "keras-hub", "jax", "tensorflow", "tensorflow-text", "torch")


def build(folder):
    """Builds the wheel from the checkout, by pip in a folder of its own; returns its path."""
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, pages.ROOT],
        check=True,
    )
    return next(pathlib.Path(folder).glob("*.whl"))


def smoke(wheel, backend, folder):
    """Installs the wheel with the extra of a backend, and types README's lines.

    Returns:
        A dict of the name of a step to its seconds, and a dict of packages to versions.
    """
    folder = pathlib.Path(folder) / backend
    place = folder / "environment"
    venv.create(place, with_pip=True)
    work = folder / "work"
    work.mkdir()
    shutil.copytree(pages.ROOT / "examples", work / "examples")
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "XLA_FLAGS", "KERAS_BACKEND", "VIRTUAL_ENV")
    } | {"KERAS_BACKEND": backend, "HF_HUB_OFFLINE": "1", "HOME": str(folder)}
    programs, seconds = place / "bin", {}

    def step(name, *command, **settings):
        start = time.monotonic()
        done = subprocess.run(
            command,
            cwd=work,
            env=environment | settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        seconds[name] = time.monotonic() - start
        print(f"{backend}: {name}, {seconds[name]:.0f} s", flush=True)
        if done.returncode:
            sys.exit(f"{' '.join(map(str, command))}\n{done.stdout[-4000:]}")
        return done.stdout

    home = {"HOME": os.environ.get("HOME", "")}  # pip's own settings and cache
    step("install", programs / "pip", "install", "-q", f"{wheel}[{backend}]", **home)
    versions = step("check", programs / "python", "-c", _VERSIONS.format(names=SHOWN))
    answer = step("examples/generate.py", programs / "python", "examples/generate.py")
    assert "In the beginning" in answer, answer
    code = SESSION.format(
        tests=str(pages.ROOT / "tests"), readme=str(pages.ROOT / "README.md"), backend=backend
    )
    step("README's Python", programs / "python", "-c", code)
    step("keras-rgemma --version", programs / "keras-rgemma", "--version")
    step("keras-rgemma presets", programs / "keras-rgemma", "presets")
    given = ("generate", "In the beginning", "--max-new-tokens", "24")
    written = step("keras-rgemma generate", programs / "keras-rgemma", *given)
    assert written.startswith("In the beginning"), written
    return seconds, versions.strip()


_VERSIONS = """
import importlib.metadata as m
found = {{x.metadata["Name"].lower().replace("_", "-"): x.version for x in m.distributions()}}
print(", ".join(f"{{x}} {{found[x]}}" for x in {names} if x in found))
"""


def report(results):
    """The page of results, a str of Markdown."""
    lines = [
        "# The wheel in an empty environment",
        "",
        "```",
        f"python tests/smoke_wheel.py {' '.join(results)}",
        "```",
        "",
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}. Every line "
        "of README.md ran, word for word, and its answers were those that it shows.",
        "",
        "| extra | seconds to install | README's Python, s | versions that pip chose |",
        "|---|---|---|---|",
    ]
    for backend, (seconds, versions) in results.items():
        install, session = seconds["install"], seconds["README's Python"]
        lines.append(f"| {backend} | {install:.0f} | {session:.0f} | {versions} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("backends", nargs="*", help="those to try (jax tensorflow torch)")
    parser.add_argument("--write", action="store_true", help=f"write {REPORT.name}")
    args = parser.parse_args()
    if unknown := set(args.backends) - set(BACKENDS):
        parser.error(f"there is no backend {sorted(unknown)}")
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        wheel = build(folder)
        for backend in args.backends or BACKENDS:
            results[backend] = smoke(wheel, backend, folder)
            shutil.rmtree(pathlib.Path(folder) / backend)
            if args.write:  # what is done stays, whatever happens to the next one
                REPORT.write_text(report(results), encoding="utf-8")
    print(report(results))


if __name__ == "__main__":
    main()
