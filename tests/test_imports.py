"""Imports follow the layers of the package: downward, and each backend in its own files."""

import ast
import pathlib
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "keras_rgemma"
FILES = sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py"))
BACKENDS = {"jax": "jax", "jaxlib": "jax", "tensorflow": "tensorflow", "tensorflow_text": None}
BACKENDS |= {"torch": "torch", "triton": "torch", "flax": None}
# Where a backend may be imported in any file, and where KerasHub may.
ANY_BACKEND = ("checkpoints", "distribution", "evaluation", "benchmarks")
KERAS_HUB = ("model", "keras_internals", "evaluation", "benchmarks")
KERAS_HUB_FILES = ("generation/search.py",)

# What each part may import, itself aside; "" is `keras_rgemma/__init__.py`.
BASE = {
    "types",
    "startup",
    "choices",
    "config",
    "shapes",
    "files",
    "interrupts",
    "workers",
    "backend",
    "keras_internals",
    "sharding",
}
LAYERS = {*BASE, "state", "ops", "layers"}
ROOMS = {"lora", "text", "checkpoints", "generation"}
MODEL = {*LAYERS, *ROOMS, "model"}
ALLOWED = {
    "types": set(),
    "choices": set(),
    "startup": set(),
    "config": set(),
    "shapes": {"config", "types"},
    "files": {"types"},
    "interrupts": set(),
    "workers": {"interrupts"},
    "backend": {"choices", "types"},
    "keras_internals": {"startup", "interrupts", "types"},
    "sharding": {"config", "keras_internals", "types"},
    "state": BASE,
    "ops": {*BASE, "state"},
    "layers": {*BASE, "state", "ops"},
    **dict.fromkeys(ROOMS, LAYERS),
    "model": {*LAYERS, *ROOMS},
    "training": MODEL,
    "finetuning": {"training"},
    "distribution": MODEL,
    "evaluation": {*MODEL, "api", ""},
    "api": {*MODEL, "finetuning", "distribution"},
    "": {"api", "startup"},
    "benchmarks": {*MODEL, "finetuning", "training", "api", ""},
    "cli": {
        *MODEL,
        "finetuning",
        "training",
        "distribution",
        "evaluation",
        "benchmarks",
        "api",
        "",
    },
}
# Arrows between rooms of one level: from a file to a module, and why.
ACROSS = {
    ("distribution/worker.py", "training.optimizer"): "a plan has the optimizer of training",
    ("lora/peft.py", "checkpoints.names"): "PEFT calls a layer by its name in the checkpoint",
    ("lora/peft.py", "checkpoints.adapter"): "an adapter is found and read as a checkpoint is",
    ("generation/chat.py", "text.conversation"): "a turn is the same in training and in a chat",
    ("generation/chat.py", "text.forms"): "a text has the same forms in training and in a chat",
    ("generation/inputs.py", "text.conversation"): "as for a chat",
    ("generation/inputs.py", "text.forms"): "as for a chat",
    ("generation/prompts.py", "text.conversation"): "as for a chat",
    ("generation/prefill.py", "text.conversation"): "as for a chat",
    ("generation/prefill.py", "text.forms"): "as for a chat",
}
# Modules of others that are imported inside of functions: each is slow to import or optional.
DEFERRED = {
    "huggingface_hub": "the client of a hub, needed for handles alone",
    "kagglehub": "the client of a hub, needed for handles alone",
    "modelscope": "optional, the client of a hub",
    "orbax": "optional, and starts JAX",
    "matplotlib": "optional, draws plots of benchmarks",
    "torch": "optional, for `.pt` files and for a dtype that NumPy lacks",
    "peft": "optional, a peer in a benchmark",
    "transformers": "optional, a peer in a benchmark",
}
# Files that the command loads before it knows what to do. They import the standard library and each
# other; what a command works with it imports in its functions, from these packages.
LIGHT = {
    "choices.py",
    "interrupts.py",
    "startup.py",
    "types.py",
    "checkpoints/__init__.py",
    "checkpoints/cache.py",
    "checkpoints/registry.py",
    "keras_internals/__init__.py",
    "keras_internals/hubs.py",
    "benchmarks/__init__.py",
    "benchmarks/arguments.py",
    "distribution/__init__.py",
    "distribution/devices.py",
    *(file for file in FILES if file.startswith("cli/")),
}
IN_COMMANDS = {"keras", "keras_rgemma"}
# Files of the package that only TensorFlow's users load.
LACKING = "imports TensorFlow, which other backends lack"
DEFERRED_FILES = {
    "keras_rgemma.text.tensorflow": LACKING,
    "keras_rgemma.keras_internals.tensorflow": LACKING,
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
    """The modules that a file of the package imports and must not."""
    part, path = part_of(file), pathlib.PurePath(file)
    package = ".".join(["keras_rgemma", *path.parts[:-1]])
    wrong = []
    for module, at_module_level in imports(source, package):
        top, *rest = module.split(".")
        if top in BACKENDS and part not in ANY_BACKEND:
            wrong += [] if BACKENDS[top] in (path.stem, *path.parts[:-1]) else [module]
        if top == "keras_hub" and part not in KERAS_HUB and file not in KERAS_HUB_FILES:
            wrong.append(module)
        if top == "keras_rgemma":
            target = rest[0] if rest and rest[0] in ALLOWED else ""
            is_across = any((file, ".".join(rest[:n])) in ACROSS for n in (1, 2))
            is_allowed = target == part or target in ALLOWED[part] or is_across
            wrong += [] if is_allowed else [module]
        if not at_module_level:
            is_known = top in DEFERRED or any(module.startswith(x) for x in DEFERRED_FILES)
            is_known |= part == "cli" and top in IN_COMMANDS
            wrong += [] if is_known or module in wrong else [f"{module} inside of a function"]
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
        names = [name for name, _ in imports((PACKAGE / file).read_text(), package)]
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


@pytest.mark.parametrize("file", sorted(LIGHT))
def test_the_command_starts_without_the_rest(file):
    source, package = (PACKAGE / file).read_text(), module_of(file)
    package = package if file.endswith("__init__.py") else package.rpartition(".")[0]
    own, light = set(map(module_of, FILES)), {"keras_rgemma", *map(module_of, LIGHT)}
    names = {name for name, is_at_top in imports(source, package) if is_at_top}
    modules = {name if name in own else name.rpartition(".")[0] or name for name in names}
    assert {x for x in modules if x.split(".")[0] not in sys.stdlib_module_names} <= light


@pytest.mark.parametrize("file", FILES)
def test_a_file_is_short(file):
    assert len((PACKAGE / file).read_text().splitlines()) <= 350, "it holds more than one idea"


def test_no_exception_is_stale():
    for file, module in ACROSS:
        package = ".".join(["keras_rgemma", *pathlib.PurePath(file).parts[:-1]])
        names = {name for name, _ in imports((PACKAGE / file).read_text(), package)}
        assert any(name.startswith(f"keras_rgemma.{module}") for name in names), (file, module)
    tops = {
        name.split(".")[0]
        for file in FILES
        for name, at_top in imports((PACKAGE / file).read_text())
        if not at_top
    }
    # Peers stand beside the package, in benchmarks/ at the top.
    assert set(DEFERRED) - tops <= {"peft", "transformers"}


@pytest.mark.parametrize(
    "file, source",
    [
        ("ops/rope/__init__.py", "import torch"),
        ("ops/linear_recurrence/jax.py", "import tensorflow as tf"),
        ("layers/rg_lru.py", "from jax import lax"),
        ("ops/linear_recurrence/__init__.py", "import triton.language as tl"),
        ("model/backbone.py", "import torch.nn"),
        ("layers/rg_lru.py", "if True:\n    from keras_hub import models"),
        ("generation/decode.py", "import keras_hub"),
        ("config.py", "from keras_rgemma import state"),
        ("state/records.py", "from keras_rgemma.ops.rope import rotate"),
        ("ops/rope/__init__.py", "from ...layers import rms_norm"),
        ("layers/rg_lru.py", "class A:\n    from keras_rgemma import RGemmaBackbone"),
        ("generation/decode.py", "import keras_rgemma.model.backbone"),
        ("generation/decode.py", "import keras_rgemma.text.examples"),
        ("model/causal_lm.py", "def f():\n    from keras_rgemma.generation import decode"),
        ("model/causal_lm.py", "def f():\n    import h5py"),
        ("model/causal_lm.py", "def f():\n    import keras"),
        ("cli/chat.py", "def f():\n    import tensorflow"),
    ],
)
def test_the_law_notices(file, source):
    assert len(violations(file, source)) == 1


@pytest.mark.parametrize(
    "file, source",
    [
        ("ops/linear_recurrence/jax.py", "import jax\nfrom jax import lax"),
        ("generation/torch.py", "import torch"),
        ("generation/torch/step.py", "import torch"),
        ("ops/linear_recurrence/torch/triton_kernels.py", "import triton.language as tl"),
        ("benchmarks/measure.py", "import torch, jax, keras_hub"),
        ("model/causal_lm.py", "from keras_rgemma.generation import decode"),
        ("checkpoints/hub.py", "def f():\n    import kagglehub"),
        ("cli/chat.py", "def f():\n    import keras\n    from keras_rgemma.api import RGemmaState"),
        ("generation/chat.py", "from keras_rgemma.text.conversation import read_history"),
        ("layers/rg_lru.py", "from ..ops.rope import rotate\nfrom . import linear"),
    ],
)
def test_the_law_allows(file, source):
    assert violations(file, source) == []


def test_the_law_notices_a_circle():
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle_in({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None
