"""Runs lines of Python as they would run in a terminal, and shows them with what they print.

python tests/first_minute/session.py < LINES
"""

import code
import sys


class Session(code.InteractiveConsole):
    def __init__(self, lines):
        super().__init__()
        self.lines = iter(lines)

    def raw_input(self, prompt=""):
        try:
            line = next(self.lines)
        except StopIteration:
            raise EOFError from None
        print(f"{prompt}{line}".rstrip())
        return line


if __name__ == "__main__":
    sys.ps1, sys.ps2 = ">>> ", "... "
    Session(sys.stdin.read().splitlines()).interact(banner="", exitmsg="")
