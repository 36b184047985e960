"""Runs the code of a page of Markdown: README.md, CONTRIBUTING.md, and those in docs/.

    KERAS_BACKEND=jax python tests/pages.py docs/devices.md

The Python blocks of a page run in order, in one namespace and in a folder of its own. What a block
needs and the page need not show stands in a comment of the page, in front of the block:

    <!-- python
    lm = keras_rgemma.RGemmaCausalLM.from_preset("rgemma_tiny_en")
    -->

Words for which no test can fetch what they name are replaced by those of `STAND_INS` first.
"""

import ast
import contextlib
import os
import pathlib
import re
import sys
import tempfile
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Google's presets are gated and large, and the data of a task lie on a hub. A preset stays where it
# is; tests/test_notebooks.py uploads one, to a hub of its own.
STAND_INS = {
    "rgemma_2b_en": "rgemma_tiny_en",
    "rgemma_instruct_2b_en": "rgemma_tiny_en",
    "rgemma_9b_en": "rgemma_tiny_en",
    "rgemma_instruct_9b_en": "rgemma_tiny_en",
    "hf://google/recurrentgemma-2b-it": "rgemma_tiny_en",
    "hf://google/recurrentgemma-2b": "rgemma_tiny_en",
    '"hf://you/my_model"': '"my_preset"',
    "keras_hub.upload_preset(": "__import__('stand_ins').upload_preset(",
    'tasks=["piqa"]': "tasks=[__import__('stand_ins').questions()]",
}


class Block(NamedTuple):
    """A block of code of a page.

    Attributes:
        language: str, "python", "bash" or "" for one without a language.
        code: str.
        line: int, the line of the page on which the code begins, from 1.
        is_hidden: bool, whether it stands in a comment.
    """

    language: str
    code: str
    line: int
    is_hidden: bool


_FENCES = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^(?P=indent)```$"
    r"|^<!-- (?P<hidden>python)\n(?P<hidden_code>.*?)^-->$",
    re.MULTILINE | re.DOTALL,
)


def blocks(text):
    """The blocks of code of a page, a list of `Block` in their order."""
    found = []
    for match in _FENCES.finditer(text):
        part = "hidden_code" if match["hidden"] else "code"
        code = "".join(
            line.removeprefix(match["indent"] or "") for line in match[part].splitlines(True)
        )
        line = text.count("\n", 0, match.start(part)) + 1
        language = match["hidden"] or match["language"]
        found.append(Block(language, code, line, bool(match["hidden"])))
    return found


def replace_stand_ins(code):
    """Replaces words by those that stand for them; a longer name is another word."""
    for word, stand_in in STAND_INS.items():
        code = re.sub(rf"{re.escape(word)}(?![\w-])", lambda _, x=stand_in: x, code)
    return code


def run(path, folder, shows=False):
    """Runs the Python blocks of a page; returns the outputs that it shows beside those that come.

    Args:
        path: path of the page.
        folder: str or path, an empty folder to run in.
        shows: bool, whether a comment in a line of its own behind an expression is its value, and
            one behind a name is its `repr`.

    Returns:
        A list of triples: a line number, the text that the page shows, and the value as text.
    """
    text = pathlib.Path(path).read_text(encoding="utf-8")
    namespace, outputs = {"__name__": "page"}, []
    with contextlib.chdir(folder):
        for block in blocks(text):
            if block.language == "python":
                code = "\n" * (block.line - 1) + replace_stand_ins(block.code)
                outputs += _run(code, str(path), namespace, shows and not block.is_hidden)
    return outputs


def _run(code, name, namespace, shows):
    lines, outputs = code.splitlines(), []
    for statement in ast.parse(code, name).body:
        if not isinstance(statement, ast.Expr):
            exec(compile(ast.Module([statement], []), name, "exec"), namespace)
            continue
        value = eval(compile(ast.Expression(statement.value), name, "eval"), namespace)
        shown = _shown(lines, statement)
        if shows and shown is not None and value is not None:
            is_name = isinstance(statement.value, ast.Name)
            outputs.append((statement.lineno, shown, repr(value) if is_name else str(value)))
    return outputs


def _shown(lines, statement):
    """The text in the comment that shows the value of a statement, or None."""
    behind = lines[statement.end_lineno - 1][statement.end_col_offset :]
    if isinstance(statement.value, ast.Name) and behind.strip():
        return behind.strip().removeprefix("# ")
    below = lines[statement.end_lineno] if statement.end_lineno < len(lines) else ""
    return below.removeprefix("# ") if below.startswith("# ") else None


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with tempfile.TemporaryDirectory() as place:
        run(pathlib.Path(sys.argv[1]).resolve(), place)
