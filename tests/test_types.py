"""Type hints: a type checker knows the type of everything that the package offers."""

import ast
import json
import os
import pathlib
import shutil
import site
import subprocess
import sys
import venv

import pytest
from hatchling.builders.wheel import WheelBuilder

from backend_independent import backend_independent

pytestmark = backend_independent

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "keras_rgemma"
FILES = sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py"))
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def completeness(package, folder):
    """The report of `pyright --verifytypes` on a package, installed in an environment of its own.

    Args:
        package: path of the package's folder.
        folder: path of an empty folder.

    Returns:
        dict: the score, a float, and the list of str of what has no type.
    """
    environment, empty = folder / "environment", folder / "empty"
    empty.mkdir()
    venv.create(environment, symlinks=os.name != "nt")
    (packages,) = environment.rglob("site-packages")
    shutil.copytree(package, packages / package.name)
    (packages / "others.pth").write_text("\n".join(site.getsitepackages()))
    programs = environment / ("Scripts" if os.name == "nt" else "bin")
    variables = {
        "PATH": os.pathsep.join([str(programs), os.environ["PATH"]]),
        "VIRTUAL_ENV": str(environment),
        "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1",  # it would ask PyPI for a newer version
    }
    command = [sys.executable, "-m", "pyright", "--outputjson", "--ignoreexternal"]
    done = subprocess.run(
        [*command, "--verifytypes", package.name],
        cwd=empty,
        env=os.environ | variables,
        capture_output=True,
        text=True,
    )
    try:
        report = json.loads(done.stdout)["typeCompleteness"]
    except (ValueError, KeyError):
        raise AssertionError(f"pyright reports nothing: {done.stdout}{done.stderr}") from None
    return {
        "score": report["completenessScore"],
        "unknown": [x["name"] for x in report["symbols"] if not x["isTypeKnown"]],
        "symbols": len(report["symbols"]),
    }


def bare(source):
    """The functions of a file with a parameter, or a result, that has no annotation.

    Kernels of Triton are left out: Triton reads the annotations of parameters.
    """
    tree, found = ast.parse(source), []
    methods = {
        id(function)
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for function in node.body
        if isinstance(function, FUNCTIONS)
        and not any(ast.unparse(x) == "staticmethod" for x in function.decorator_list)
    }
    for node in ast.walk(tree):
        if not isinstance(node, FUNCTIONS):
            continue
        if any("triton.jit" in ast.unparse(x) for x in node.decorator_list):
            continue
        arguments = node.args
        parameters = [*arguments.posonlyargs, *arguments.args]
        parameters = parameters[1:] if id(node) in methods else parameters
        parameters += [*arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
        if node.returns is None or any(x and x.annotation is None for x in parameters):
            found.append(node.name)
    return found


def test_everything_has_a_type(tmp_path):
    report = completeness(PACKAGE, tmp_path)
    assert report["unknown"] == []
    assert report["score"] == 1
    assert report["symbols"] > 1000  # it has read the package


def test_a_missing_type_is_found(tmp_path):
    package = tmp_path / "some_package"
    package.mkdir()
    (package / "py.typed").touch()
    (package / "__init__.py").write_text("def typed() -> int: ...\ndef bare(x): ...\n")
    report = completeness(package, tmp_path)
    assert "some_package.bare" in report["unknown"]
    assert "some_package.typed" not in report["unknown"]
    assert report["score"] < 1


# Pyright does not look into classes that a function of an untyped library decorates, as
# `keras.saving.register_keras_serializable` does, nor into names that begin with an underscore.
@pytest.mark.parametrize("name", FILES)
def test_every_function_is_annotated(name):
    assert bare((PACKAGE / name).read_text(encoding="utf-8")) == []


def test_missing_annotations_are_found():
    source = """
class Class:
    def method(self, x: int): ...
    @staticmethod
    def function(x) -> int: ...
    @property
    def typed(self) -> int: ...
@triton.jit
def kernel(x): ...
def inner(*x: int, y: int, **z: int) -> None:
    def innermost(*, y) -> None: ...
"""
    assert sorted(bare(source)) == ["function", "innermost", "method"]


def test_type_checkers_are_told():
    files = {x.distribution_path for x in WheelBuilder(str(ROOT)).recurse_included_files()}
    assert "keras_rgemma/py.typed" in files
