"""Imports follow the layers of the package: downward, and each backend in its own files."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "keras_rgemma"
FILES = sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py"))
BACKENDS = {"jax": "jax", "jaxlib": "jax", "tensorflow": "tensorflow", "tensorflow_text": None}
BACKENDS |= {"torch": "torch", "flax": None}
ANY_BACKEND = ("checkpoints", "distribution", "evaluation", "benchmarks")
KERAS_HUB = ("model", "evaluation", "benchmarks")

# What each part may import at module level, itself aside; "" is `keras_rgemma/__init__.py`.
BASE = {"config", "shapes"}
MODEL = {*BASE, "state", "ops", "layers", "model"}
ALLOWED = {
    "config": set(),
    "shapes": {"config"},
    "state": BASE,
    "ops": {*BASE, "state"},
    "layers": {*BASE, "state", "ops"},
    "model": {*BASE, "state", "ops", "layers"},
    "generation": {*BASE, "state", "ops"},
    "checkpoints": BASE,
    "finetuning": MODEL,
    "distribution": MODEL,
    "evaluation": {*MODEL, ""},
    "benchmarks": {*MODEL, ""},
    "cli": {*MODEL, "", "generation", "checkpoints", "finetuning", "distribution"},
    "": {*MODEL, "generation"},
}


def part_of(file):
    """The part of the package that a file belongs to: its folder, or its name at the top."""
    first = file.split("/")[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imports(source, package=""):
    """Pairs of a module's dotted name and whether it is imported when the file is.

    `from a import b` counts as `a.b`, which may be a module or a name in one.
    """
    found = []

    def visit(node, at_module_level):
        if isinstance(node, ast.Import):
            found.extend((alias.name, at_module_level) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(parents if node.level else []), *filter(None, [node.module])])
            found.extend((f"{base}.{alias.name}", at_module_level) for alias in node.names)
        inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            visit(child, at_module_level and not inside)

    visit(ast.parse(source), True)
    return found


def violations(file, source):
    """What a file of the package imports that it must not."""
    part, stem = part_of(file), pathlib.PurePath(file).stem
    package = ".".join(["keras_rgemma", *pathlib.PurePath(file).parts[:-1]])
    wrong = []
    for module, at_module_level in imports(source, package):
        top, *rest = module.split(".")
        if top in BACKENDS and part not in ANY_BACKEND:
            own = part in ("ops", "generation") and stem == BACKENDS[top]
            wrong += [] if own else [module]
        if top == "keras_hub" and part not in KERAS_HUB:
            wrong.append(module)
        if top == "keras_rgemma" and at_module_level:
            target = rest[0] if rest and rest[0] in ALLOWED else ""
            wrong += [] if target == part or target in ALLOWED[part] else [module]
    return wrong


@pytest.mark.parametrize("file", FILES)
def test_a_file_imports_what_its_part_may(file):
    assert part_of(file) in ALLOWED, "a new part of the package: say what it may import"
    assert violations(file, (PACKAGE / file).read_text()) == []


def module_of(file):
    parts = pathlib.PurePath(file).with_suffix("").parts
    return ".".join(["keras_rgemma", *(parts[:-1] if parts[-1] == "__init__" else parts)])


def test_no_modules_import_each_other_in_a_circle():
    modules = {module_of(file): file for file in FILES}
    graph = {}
    for module, file in modules.items():
        package = module if file.endswith("__init__.py") else module.rpartition(".")[0]
        names = [name for name, at_top in imports((PACKAGE / file).read_text(), package) if at_top]
        targets = {n if n in modules else n.rpartition(".")[0] for n in names}
        graph[module] = {target for target in targets if target in modules}
    assert sum(map(len, graph.values())) > 20  # the names were resolved
    assert circle_in(graph) is None


def circle_in(graph):
    """A list of nodes that lead back to the first one, or None."""
    done = set()

    def search(node, path):
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return None
        for target in sorted(graph[node]):
            circle = search(target, [*path, node])
            if circle:
                return circle
        done.add(node)
        return None

    return next(filter(None, (search(node, []) for node in sorted(graph))), None)


@pytest.mark.parametrize(
    "file, source",
    [
        ("ops/rope.py", "import torch"),
        ("ops/linear_recurrence/jax.py", "import tensorflow as tf"),
        ("layers/jax.py", "from jax import lax"),
        ("model/backbone.py", "def f():\n    import torch.nn"),
        ("layers/rg_lru.py", "if True:\n    from keras_hub import models"),
        ("generation/decode.py", "def f():\n    import keras_hub"),
        ("config.py", "from keras_rgemma import state"),
        ("state.py", "from keras_rgemma.ops.rope import rotate"),
        ("ops/rope.py", "from ..layers import rms_norm"),
        ("layers/rg_lru.py", "class A:\n    from keras_rgemma import RGemmaBackbone"),
        ("model/causal_lm.py", "from keras_rgemma.generation.decode import sample"),
        ("generation/decode.py", "import keras_rgemma.model.backbone"),
    ],
)
def test_the_law_notices(file, source):
    assert len(violations(file, source)) == 1


@pytest.mark.parametrize(
    "file, source",
    [
        ("ops/linear_recurrence/jax.py", "import jax\nfrom jax import lax"),
        ("generation/torch.py", "import torch"),
        ("benchmarks/measure.py", "import torch, jax, keras_hub"),
        ("model/causal_lm.py", "def f():\n    from keras_rgemma.generation import decode"),
        ("layers/rg_lru.py", "from ..ops.rope import rotate\nfrom . import linear"),
    ],
)
def test_the_law_allows(file, source):
    assert violations(file, source) == []


def test_the_law_notices_a_circle():
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle_in({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None
