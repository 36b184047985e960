"""Every public name is in the API reference, and its docstring has an example that runs."""

import argparse
import functools
import importlib
import inspect
import json
import re
import shlex

import keras
import keras_hub
import numpy as np
import pytest

import keras_rgemma
import reference
from backend_independent import backend_independent
from keras_rgemma.cli import COMMANDS
from keras_rgemma.distribution import compiling

OBJECTS, MEMBERS = reference.public()
PROPERTIES = {path: x for path, x in MEMBERS.items() if not reference.is_method(x)}
METHODS = {path: x for path, x in MEMBERS.items() if path not in PROPERTIES}
DOCSTRINGS = {path: reference.docstring(x) for path, x in (OBJECTS | METHODS).items()}
ON_JAX = "keras_rgemma.RGemmaBackbone.get_layout_map"  # as `keras.distribution` is
# What a subclass inherits has the same example.
EXAMPLES = {text: path for path, text in reversed(DOCSTRINGS.items()) if path != ON_JAX}
# Examples after which a model is another one.
CHANGES = re.compile(r"fit|compile|quantize|lora|load_|LongTexts|transformer_layers\[|set_dist")
PAGES = sorted((reference.ROOT / "docs" / "reference").glob("*.md"))
# What a compiler says of a program. Compilers themselves run in distribution/test_for_tpu.py.
COMPILED = {
    **dict.fromkeys(("weight_bytes", "argument_bytes"), 5 * 10**9),
    **dict.fromkeys(("optimizer_bytes", "state_bytes", "output_bytes", "alias_bytes"), 0),
    **{"code_bytes": 0, "temporary_bytes": 10**9, "host_bytes": 10**9, "flops": 1e12},
    **{"fits": True, "collectives": [], "trace_s": 1.0, "compile_s": 2.0},
}


@pytest.fixture
def names(tmp_path, monkeypatch):
    """What an example may use without saying where it comes from, by name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiling, "_run", lambda job, tick: COMPILED)
    monkeypatch.setattr(compiling, "_is_there", lambda module: True)
    (tmp_path / "book.txt").write_text("In the beginning was the word.\n" * 20, encoding="utf-8")
    return {
        "__name__": "example",
        "json": json,
        "keras": keras,
        "keras_hub": keras_hub,
        "keras_rgemma": keras_rgemma,
        "np": np,
    }


@functools.cache
def shared_model():
    """The model of examples that leave it as it is."""
    lm = keras_rgemma.RGemmaCausalLM.from_preset("rgemma_tiny_en")
    lm.preprocessor.sequence_length = 32
    return lm


def run(path, names):
    """Runs the example of a name; returns its code, and its variables by name."""
    code = reference.example(DOCSTRINGS[path])
    assert code, f"{path} has no example."
    lm = shared_model.__wrapped__() if CHANGES.search(code) else shared_model()
    names |= {"lm": lm, "backbone": lm.backbone, "tokenizer": lm.preprocessor.tokenizer}
    for library in {"peft", "transformers"} & {*re.findall(r"\w+", code)}:
        names[library] = pytest.importorskip(library)
    exec(compile(code, path, "exec"), names)
    return code, names


@backend_independent
@pytest.mark.parametrize("path", sorted(EXAMPLES.values()))
def test_the_example_of_a_name_runs(path, names):
    code, _ = run(path, names)
    # It shows the name itself: `lm.generate(`, `AdamW(`, `state[1:]`.
    shown = {"__getitem__": "["}.get(path.rpartition(".")[2], path.rpartition(".")[2])
    is_returned = inspect.isclass(OBJECTS.get(path)) and OBJECTS[path] in reference.RETURNED
    assert shown in code or is_returned, code


@pytest.mark.skipif(keras.config.backend() != "jax", reason="`keras.distribution` is for JAX")
def test_the_example_of_a_distribution_runs(names):
    before = keras.distribution.distribution()
    try:
        _, names = run(ON_JAX, names)
        assert names["lm"].backbone.token_embedding.embeddings.value.sharding.mesh.size == 1
    finally:
        keras.distribution.set_distribution(before)


@backend_independent
@pytest.mark.parametrize("path", PROPERTIES)
def test_an_example_shows_a_property(path):
    owner, _, name = path.rpartition(".")
    own = reference.example(reference.docstring(getattr(PROPERTIES[path], "fget", None) or ""))
    code = own or reference.example(DOCSTRINGS[owner])
    assert re.search(rf"\.{name}\b", code), code


@backend_independent
def test_every_name_is_in_the_reference():
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    described = {}
    for found in re.finditer(r"^::: ([\w.]+)\n((?: +.*\n|\n)*)", text + "\n", re.M):
        described.setdefault(found[1], set()).update(re.findall(r"\w+", found[2]))
    missing = [path for path in OBJECTS if path not in described]
    missing += [x for x in MEMBERS if x.rpartition(".")[2] not in described[x.rpartition(".")[0]]]
    assert missing == []


@backend_independent
def test_every_command_has_examples_of_itself():
    for command in COMMANDS:
        module = importlib.import_module(f"keras_rgemma.cli.{command.replace('-', '_')}")
        lines = re.findall(rf"^ *keras-rgemma ({command}\b.*)$", module.__doc__, re.M)
        assert lines, command
        for line in lines:
            arguments = shlex.split(line.partition(" < ")[0])
            assert parsed(module, arguments[1:]) is not None, line


def parsed(module, arguments):
    """The arguments of a command as its own parser reads them."""
    parser = argparse.ArgumentParser(**getattr(module, "PARSER_OPTIONS", {}))
    module.add_arguments(parser)
    return parser.parse_args(arguments)
