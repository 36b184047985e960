"""Keeps the lines that TensorFlow's C++ code logs while it starts off the terminal.

TensorFlow, which KerasHub imports on every backend, writes how it was built, which libraries it
looked for and did not find, and which parts registered twice. No level of logging, of the process
or of Python, reaches the first of them. Its log is left alone before and after.
"""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator

_STDERR = 2
# As `I0000 00:00:1795729365.688691   15554 port.cc:153] text`, or with a date in older versions.
_LINE = re.compile(rb"([IWEF])\d{4} [\d:.]+ +\d+ \S+:\d+\] |[\d-]{10} [\d:.]+: ([IWEF]) \S+:\d+\] ")
_PREAMBLES = (
    b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
    b"To enable the following instructions: ",
)
# Warnings and errors of each start, which nothing follows from.
_EXPECTED = (b"already been registered", b"already registered")
_NO_DRIVER = b"failed call to cuInit"
_DRIVER = "/proc/driver/nvidia"


@contextlib.contextmanager
def without_startup_lines() -> Iterator[None]:
    """Drops lines about the start of TensorFlow from standard error inside a `with` block.

    What else is written meanwhile, by other threads, too, is written after the block. If the block
    raises an exception, everything is.
    """
    # Who asks for these lines gets them; and there may be no standard error.
    saved = None
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") != "0":
        with contextlib.suppress(OSError):
            saved = os.dup(_STDERR)
    if saved is None:
        yield
        return
    with tempfile.TemporaryFile() as file:
        _flush()
        os.dup2(file.fileno(), _STDERR)
        has_failed = True
        try:
            yield
            has_failed = False
        finally:
            _flush()
            os.dup2(saved, _STDERR)
            os.close(saved)
            file.seek(0)
            kept = [line for line in file if has_failed or not _is_startup_line(line)]
            with contextlib.suppress(OSError), open(_STDERR, "wb", closefd=False) as stderr:
                stderr.writelines(kept)


def _is_startup_line(line: bytes) -> bool:
    """Returns whether a line, bytes, says only what each start of TensorFlow says."""
    if line.startswith(_PREAMBLES):
        return True
    match = _LINE.match(line)
    if not match:
        return False
    is_known = any(part in line for part in _EXPECTED)
    is_known |= _NO_DRIVER in line and not os.path.exists(_DRIVER)
    return is_known or b"I" in match.groups()


def _flush() -> None:
    with contextlib.suppress(AttributeError, OSError, ValueError):
        sys.stderr.flush()
