"""No file outside of keras_internals touches a private name of another package."""

import ast
import functools
import importlib
import inspect
import pathlib
import re
import sys
import textwrap

import keras
import pytest

from backend_independent import backend_independent

PACKAGE = pathlib.Path(__file__).parent.parent / "keras_rgemma"
HOME = "keras_internals"
FILES = sorted(
    str(path.relative_to(PACKAGE))
    for path in PACKAGE.rglob("*.py")
    if HOME not in path.relative_to(PACKAGE).parts
)
# Documented names of the standard library, first of `typing.NamedTuple` and `dataclasses`.
STANDARD = {"_asdict", "_fields", "_make", "_replace", "_field_defaults"}
STANDARD |= {"_exit"}  # of `os`
# What `typing.Protocol` sets on its classes.
STANDARD |= {"_abc_impl", "_is_protocol", "_is_runtime_protocol"}
# What `torch.autograd.Function` sets on its classes.
STANDARD |= {"_backward_cls"}
# Functions and methods that are given names in a string, as one of their first two arguments.
NAMING = {"getattr", "hasattr", "setattr", "delattr", "attrgetter", "methodcaller"}
NAMING |= {"get", "pop", "setdefault"}  # of keyword arguments
OWN_MODULES = "keras_rgemma."
_PRIVATE_MODULE = re.compile(r"(^|\.)(_(?!_)\w*|src)(\.|$)")
# Keys in the files of others.
FORMATS = {"checkpoints/huggingface.py": {"_block_types"}}


def is_private(name):
    return name.startswith("_") and not name.startswith("__") and name != "_"


def names_in(source):
    """The private names that a file uses as attributes or arguments, and the modules it imports.

    Returns:
        A pair of sets: names, and dotted names of modules that are private.
    """
    names, modules = set(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            names.add(node.attr)
            modules.add(ast.unparse(node) if node.attr == "src" else "")
        elif isinstance(node, ast.keyword):
            names.add(node.arg or "")
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Subscript):
            key = node.slice
            names |= {str(key.value)} if isinstance(key, ast.Constant) else set()
        elif isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", None))
            texts = [x.value for x in node.args[:2] if isinstance(x, ast.Constant)]
            if called in NAMING:
                names |= {part for text in texts for part in str(text).split(".")}
            if called == "import_module":
                modules |= set(map(str, texts))
    names = {name for name in names if is_private(name)}
    modules = {name for name in modules if not name.startswith(OWN_MODULES)}
    return names - STANDARD, {name for name in modules if _PRIVATE_MODULE.search(name)}


def defined_in(source):
    """The private names that a file defines: functions, classes, arguments, variables, attributes.

    An attribute counts where a method gives it to its own object or class.
    """
    names = attributes_defined_in(source)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return {name for name in names if is_private(name)}


def attributes_defined_in(source):
    """The private attributes that the methods in a file give to their own object or class."""
    return {
        node.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id in ("self", "cls")
        and is_private(node.attr)
    }


@functools.cache
def sources():
    """The text of each file outside of keras_internals, by its name."""
    return {file: (PACKAGE / file).read_text() for file in FILES}


def foreign_names(source, own):
    """The names and modules, private to other packages, that a file uses.

    Args:
        source: str.
        own: set of the private names that the package defines itself.
    """
    names, modules = names_in(source)
    return (names - own) | modules


@functools.cache
def classes():
    """The classes of the package outside of keras_internals, by module and name."""
    found = {}
    for file in FILES:
        parts = pathlib.PurePath("keras_rgemma", file).with_suffix("").parts
        if parts[-1] in ("__main__", "jax", "tensorflow", "torch", "triton_kernels"):
            continue
        name = ".".join(parts).removesuffix(".__init__")
        for _, cls in inspect.getmembers(importlib.import_module(name), inspect.isclass):
            if cls.__module__ == name:
                found[name, cls.__qualname__] = cls
    return tuple(found.values())


def is_own(cls):
    return cls.__module__.startswith(OWN_MODULES) and HOME not in cls.__module__


def private_names_of(cls):
    """The private names that a class defines and that its methods give to their object."""
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):  # made at run time, or in C
        source = ""
    return {name for name in vars(cls) if is_private(name)} | attributes_defined_in(source)


def overridden(cls):
    """Pairs of an own class among the bases of a class (itself included) and a name.

    Such a name is private to a class of another package among these bases, so that either would
    take the attribute for its own.
    """
    own, others = [], []
    for base in cls.__mro__:
        (own if is_own(base) else others).append(base)
    theirs = set().union(*map(private_names_of, others))
    return {(base, name) for base in own for name in private_names_of(base) & theirs}


@functools.cache
def overridden_by_file():
    """The private names of others that classes of the package define, a dict of file to a set."""
    found = {}
    for cls, name in set().union(*map(overridden, classes())):
        if name in STANDARD:
            continue
        file = str(pathlib.Path(inspect.getfile(cls)).relative_to(PACKAGE))
        found.setdefault(file, set()).add(name)
    return found


@functools.cache
def own_names():
    """The private names that the package defines and that are no other package's."""
    defined = set().union(*map(defined_in, sources().values()))
    return defined - set().union(*overridden_by_file().values())


@backend_independent
@pytest.mark.parametrize("file", FILES)
def test_a_file_uses_no_private_name_of_another_package(file):
    overrides = overridden_by_file().get(file, set())
    found = foreign_names(sources()[file], own_names()) | overrides
    # Equal, so that no exception outlives its reason.
    assert found == FORMATS.get(file, set())


@backend_independent
@pytest.mark.parametrize(
    "source",
    [
        "layer._flatten_layers()",
        "self._flatten_layers()",
        "x = model.layers[0]._kernel.value",
        "variable._initializer = 0",
        "del layer._tracker",
        "getattr(layer, '_losses')",
        "hasattr(f(x), '_losses') and 1",
        "setattr(layer, '_losses', [])",
        "operator.attrgetter('optimizer._losses')(model)",
        "kwargs.get('_use_cached_eval_dataset', False)",
        "kwargs['_use_cached_eval_dataset']",
        "model.evaluate(x, _use_cached_eval_dataset=True)",
        "from keras.src import tree",
        "import keras_hub.src.utils as utils",
        "keras.src.tree.flatten(x)",
        "from keras.src.tree.tree_api import register_tree_node_class",
        "def f():\n    from jax._src import core",
        "from torch import _C",
        "importlib.import_module('keras.src.tree')",
    ],
)
def test_the_law_notices(source):
    assert len(foreign_names(source, {"_own"})) == 1


@backend_independent
@pytest.mark.parametrize(
    "source",
    [
        "self._own = 1",
        "record._replace(a=1)._asdict()",
        "for _ in rows: pass",
        "x.__dict__",
        "print('_kernel')",
        "key = {'_kernel': 1}",
        "getattr(layer, 'kernel')",
        "from . import _own",
        "from keras_rgemma.files import _other",
        "import keras.srcs",
        "import_module('keras_rgemma.ops')",
    ],
)
def test_the_law_allows(source):
    assert foreign_names(source, {"_own"}) == set()


@backend_independent
def test_a_name_is_own_where_it_is_defined():
    source = """
class A:
    _a = 1
    def _b(self, _c):
        self._d = self._x = other._y = 0
_e = 1
"""
    assert defined_in(source) == {"_a", "_b", "_c", "_d", "_e", "_x"}


@backend_independent
def test_the_law_notices_what_is_overridden(monkeypatch):
    class Mixin:
        def __init__(self):
            self._tracker = None
            self._mine = None

        def _flatten_layers(self):
            return []

    class Layer(Mixin, keras.layers.Layer):
        def _own(self):
            pass

    monkeypatch.setattr(sys.modules[__name__], "OWN_MODULES", __name__)
    assert overridden(Layer) == {(Mixin, "_tracker"), (Mixin, "_flatten_layers")}
    assert overridden(Mixin) == set()


@backend_independent
def test_each_borrowed_name_has_a_test():
    borrowed = {
        node.name
        for path in (PACKAGE / HOME).glob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not is_private(node.name)
    }
    tests = pathlib.Path(__file__).parent.glob(f"test_{HOME}*.py")
    nodes = (node for path in tests for node in ast.walk(ast.parse(path.read_text())))
    used = {getattr(node, "attr", getattr(node, "id", None)) for node in nodes}
    assert len(borrowed) > 20
    assert borrowed - used == set()
