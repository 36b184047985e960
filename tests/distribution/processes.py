"""Runs scenarios in processes that have eight virtual CPU devices."""

import functools
import json
import os
import pathlib
import subprocess
import sys

TESTS = pathlib.Path(__file__).parent.parent


@functools.cache
def results_of(file, scenario):
    """What a scenario of a file returns, from a process that has eight devices."""
    done = subprocess.run(
        [sys.executable, file, scenario],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, (TESTS, TESTS.parent))),
            "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
