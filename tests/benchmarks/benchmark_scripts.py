"""Runs the scripts of benchmarks/ in tests."""

import contextlib
import importlib
import json
import pathlib
import subprocess
import sys

FOLDER = pathlib.Path(__file__).parents[2] / "benchmarks"


@contextlib.contextmanager
def importable():
    """Makes the scripts and their peers importable: yields a function that imports one."""
    folders = [str(FOLDER), str(FOLDER / "peers")]
    sys.path[:0] = folders
    try:
        yield importlib.import_module
    finally:
        for folder in folders:
            sys.path.remove(folder)


def call(script, *options):
    """Runs a script; returns what it printed."""
    command = [sys.executable, str(FOLDER / script), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run(script, *options):
    """Runs a script that measures; returns what it printed, and the report in the last line."""
    printed = call(script, *options)
    return printed, json.loads(printed.strip().splitlines()[-1])
