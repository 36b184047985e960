"""Runs modules of this package in processes of their own."""

import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

from keras_rgemma.interrupts import held_interrupts

_PACKAGE = pathlib.Path(__file__).resolve().parent


def run_module(
    module: str,
    sent: bytes,
    env: Mapping[str, str],
    tick: Callable[[], object] = lambda: None,
    **streams: Any,
) -> subprocess.CompletedProcess[bytes]:
    """Runs a module with `python -m` to its end; an exception, Ctrl-C too, ends its process.

    Args:
        module: str.
        sent: bytes, its standard input.
        env: mapping of str, its environment, to which the places of modules are added.
        tick: function, called each second until the process ends.
        **streams: `stdout` and `stderr`, as of `subprocess.Popen`.

    Returns:
        `subprocess.CompletedProcess`.
    """
    # A folder that Python was told of in another way, such as the current one, is named.
    paths = dict.fromkeys([str(_PACKAGE.parent), *filter(None, sys.path)])
    command = [sys.executable, "-m", module]
    env = {**env, "PYTHONPATH": os.pathsep.join(paths)}
    process, left = None, sent
    try:
        with held_interrupts():  # Ctrl-C in here would leave a process that nobody ends
            process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, **streams)
        while True:
            try:
                output, errors = process.communicate(left, timeout=1)
                break
            except subprocess.TimeoutExpired:
                left = None
                tick()
    except BaseException:
        if process is not None:
            process.kill()
            process.wait()
        raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)
