"""Reads the command lines that pages show, and gives them to the parsers of their programs.

Scripts run up to their parser, and no further.
"""

import argparse
import contextlib
import importlib.util
import io
import os
import pathlib
import re
import runpy
import shlex
import sys
import tomllib
from unittest import mock

from packaging.requirements import Requirement

import pages

PYTHON = re.compile(r"(.*/)?python3?$")
# Words between commands of one line, and what ends the arguments of one.
_BETWEEN = {"&&", "||", "|", ";"}
# Folders in which a page may stand whose commands name a script without one.
_FOLDERS = (pages.ROOT, pages.ROOT / "examples")


def of_page(text):
    """The commands of a page, a list of pairs of a line number and a list of words.

    They are the lines of its blocks of bash, those of other blocks that begin with `python`, and
    code within its text that begins with `python` or `keras-rgemma` and has arguments.
    """
    found = []
    for block in pages.blocks(text):
        for number, line in _lines(block):
            is_command = re.match(r"(\w+=\S+ )*(python3?|keras-rgemma) ", line)
            if block.language == "bash" or (block.language == "" and is_command):
                found += [(number, words) for words in split(line)]
    prose = re.sub(r"^ *```.*?^ *```$", lambda x: re.sub(".", "", x[0]), text, flags=re.M | re.S)
    for match in re.finditer(r"`((?:python|keras-rgemma) [^`]+)`", prose):
        number = prose.count("\n", 0, match.start()) + 1
        line = re.sub(r"(?<=\w)(\|\w+)+", "", " ".join(match[1].split()))  # the first of a|b
        found += [(number, words) for words in split(line) if len(words) > 2]
    return found


def _lines(block):
    """The lines of a block with their numbers; a backslash joins a line to the next."""
    number, waiting = block.line, ""
    for line in block.code.splitlines():
        waiting += line.removesuffix("\\")
        if not line.endswith("\\"):
            yield number, waiting
            waiting = ""
        number += 1


def split(line):
    """The commands of a line, each a list of words, without settings of the environment."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;<>")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    commands, ends = [[]], False
    for word in lexer:
        if word in _BETWEEN:
            commands.append([])
            ends = False
        elif set(word) <= {"<", ">"}:
            ends = True  # the name of a file follows
        elif not ends and (commands[-1] or not re.match(r"\w+=", word)):
            commands[-1].append(word)
    return [words for words in commands if words]


def check(words):
    """Says what is wrong with a command of this package or of pip, a str; None for nothing.

    Args:
        words: list of str, the name of a program and its arguments.
    """
    name, *arguments = words
    if name == "keras-rgemma":
        return _refusal(lambda: _parse_ours(arguments))
    if name == "pip" or name.endswith("/pip"):
        return _check_pip(arguments)
    if PYTHON.match(name) and arguments[:2] == ["-m", "pytest"]:
        missing = [x for x in arguments[2:] if "/" in x and not (pages.ROOT / x).exists()]
        return f"there is no {missing}" if missing else None
    if PYTHON.match(name) and arguments and arguments[0] != "-m":
        if not _script(arguments[0]):
            return f"there is no script {arguments[0]}"
        return _refusal(lambda: _parse_script(arguments))
    if PYTHON.match(name) and arguments and arguments[1].startswith("keras_rgemma"):
        return _refusal(lambda: _parse_script(arguments))
    return None


def _script(name):
    places = (folder / name for folder in _FOLDERS)
    return next((str(path) for path in places if path.is_file()), None)


def _parse_ours(arguments):
    from keras_rgemma import cli
    from keras_rgemma.cli import lm_eval

    parsed = []
    with contextlib.ExitStack() as stack:
        for name in cli.COMMANDS:
            module = __import__(f"keras_rgemma.cli.{name.replace('-', '_')}", fromlist=["run"])
            stack.enter_context(mock.patch.object(module, "run", parsed.append))
        stack.enter_context(mock.patch.object(cli, "_quiet", lambda: None))
        cli.main(arguments)
    if arguments[:1] == ["lm-eval"] and parsed[0].arguments:
        from lm_eval._cli.harness import HarnessCLI

        from keras_rgemma.evaluation.harness import NAME

        words = lm_eval._with_model(parsed[0].arguments, NAME)
        with mock.patch.object(sys, "argv", ["lm-eval", *words]):
            HarnessCLI().parse_args()


def _check_pip(arguments):
    """Checks the requirements of `pip install`: those of this project name extras that it has."""
    project = tomllib.loads((pages.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    if arguments[0] != "install":
        return None
    values = iter(arguments[1:])
    for word in values:
        if word in ("-c", "-r"):
            next(values)
        elif not word.startswith("-"):
            here = re.match(r"\.(\[.*\])?$", word)
            requirement = Requirement(f"{project['name']}{here[1] or ''}" if here else word)
            if requirement.name == project["name"]:
                unknown = requirement.extras - set(project["optional-dependencies"])
                if unknown:
                    return f"there is no extra {sorted(unknown)}"
    return None


class _Parsed(BaseException):
    """Ends a script as soon as its arguments are read."""


def _refusal(run):
    """The message with which a parser refuses its arguments while `run` runs, or None.

    A script that needs a package which is not installed here, such as Triton, is not asked.
    """
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            run()
    except SystemExit as error:
        if error.code not in (0, None):
            return (errors.getvalue() or str(error.code)).strip().splitlines()[-1]
    except _Parsed:
        pass
    except ImportError as error:
        if not error.name or importlib.util.find_spec(error.name.split(".")[0]):
            raise
    return None


def _parse_script(words):
    """Runs a script up to its parser; one without a parser takes no arguments.

    What it sets and imports from its folder is undone.
    """
    is_module = words[0] == "-m"
    name, arguments = (words[1], words[2:]) if is_module else (_script(words[0]), words[1:])
    if not is_module and "pars" not in pathlib.Path(name).read_text(encoding="utf-8"):
        return sys.exit(f"{name} takes no arguments") if arguments else None
    parse = argparse.ArgumentParser.parse_args

    def parse_and_end(self, *args, **kwargs):
        parse(self, *args, **kwargs)
        raise _Parsed

    with (
        mock.patch.object(argparse.ArgumentParser, "parse_args", parse_and_end),
        mock.patch.object(argparse.ArgumentParser, "parse_known_args", _ended_after_known()),
        mock.patch.object(sys, "argv", [name, *arguments]),
        mock.patch.object(sys, "path", [os.path.dirname(name) or ".", *sys.path]),
        mock.patch.dict(os.environ),
        _own_modules(os.path.dirname(name)),
    ):
        (runpy.run_module if is_module else runpy.run_path)(name, run_name="__main__")
    sys.exit(f"{name} asked no parser for its arguments")


@contextlib.contextmanager
def _own_modules(folder):
    """Forgets the modules of a folder that are imported inside of a `with` block."""
    before = set(sys.modules)
    try:
        yield
    finally:
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if folder and file and pathlib.Path(file).is_relative_to(folder):
                del sys.modules[name]


def _ended_after_known():
    """`parse_known_args` that ends a script which calls it; `parse_args` calls it, too."""
    parse = argparse.ArgumentParser.parse_known_args

    def parse_known(self, *args, **kwargs):
        result = parse(self, *args, **kwargs)
        if sys._getframe(1).f_code.co_filename != argparse.__file__:
            raise _Parsed
        return result

    return parse_known
