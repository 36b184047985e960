"""The command answers what needs no model without loading any, and `import keras_rgemma` loads all.

A subprocess prints which modules it has loaded: how long it takes depends on the machine.
"""

import os
import pathlib
import subprocess
import sys

import pytest

import keras_rgemma
from backend_independent import backend_independent
from keras_rgemma import api, choices
from keras_rgemma.checkpoints import export
from keras_rgemma.cli import COMMANDS

pytestmark = backend_independent

ROOT = pathlib.Path(keras_rgemma.__file__).parent.parent
HEAVY = ("keras", "keras_hub", "tensorflow", "torch", "jax", "numpy", "transformers", "httpx2")
# As pip writes it, but for the last lines.
SCRIPT = f"""import atexit, sys
atexit.register(lambda: print("LOADED", *sorted({HEAVY!r} & sys.modules.keys())))
from keras_rgemma.cli import main
if __name__ == "__main__":
    sys.exit(main())
"""


def run(command, **environment):
    """The exit code, standard output and standard error of a process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(params=["keras-rgemma", "keras-rgemma.exe"])
def script(request, tmp_path):
    path = tmp_path / request.param
    path.write_text(SCRIPT.replace(repr(HEAVY), repr(set(HEAVY))))
    return str(path)


@pytest.mark.parametrize(
    "arguments, code, shown",
    [
        (["--help"], 0, "Talk with an instruction-tuned model"),
        (["--version"], 0, f"keras-rgemma {keras_rgemma.__version__}"),
        (["presets"], 0, "rgemma_instruct_2b_en"),
        ([], 2, "required: COMMAND"),
        (["--typo"], 2, "required: COMMAND"),
        (["typo"], 2, "invalid choice: 'typo'"),
        (["generate", "text", "--typo"], 2, "--typo"),
        (["convert", "a", "b", "--to", "typo"], 2, "'keras', 'transformers', 'flax', 'torch'"),
        (["bench", "--backends", "typo"], 2, "typo"),
        *(([name, "--help"], 0, f"keras-rgemma {name}") for name in COMMANDS),
    ],
)
def test_nothing_heavy_is_loaded_for_an_answer_without_a_model(script, arguments, code, shown):
    found, out, error = run([sys.executable, script, *arguments])
    assert (found, shown in out + error) == (code, True), out + error
    assert out.splitlines()[-1].split() == ["LOADED"]


def test_the_module_starts_like_the_script():
    command = [sys.executable, "-X", "importtime", "-m", "keras_rgemma.cli", "--version"]
    _, out, error = run(command)
    modules = {line.rpartition("|")[2].strip() for line in error.splitlines()}
    assert out.startswith("keras-rgemma ") and "keras_rgemma.cli" in modules
    assert modules & set(HEAVY) == set()


REGISTERED = "keras.saving.get_registered_object('keras_rgemma>RGemmaBackbone') is not None"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["program.py", "keras-rgemma"])
def test_the_package_has_its_names_in_every_program(name, tmp_path):
    """A program of a user's own that is called like the command, too."""
    path = tmp_path / name
    path.write_text(
        "import keras_rgemma\n"
        f"assert keras_rgemma.__all__ == {keras_rgemma.__all__}\n"
        "for name in keras_rgemma.__all__:\n"
        "    assert getattr(keras_rgemma, name).__name__.endswith(name)\n"
        "assert not hasattr(keras_rgemma, 'typo')\n"
        "import keras\n"
        f"assert {REGISTERED}\n"
    )
    assert run([sys.executable, str(path)]) == (0, "", "")


@pytest.mark.slow
def test_an_import_alone_registers_the_classes():
    code = f"import keras_rgemma, keras; assert {REGISTERED}"
    assert run([sys.executable, "-c", code]) == (0, "", "")


def test_choices_are_what_there_is():
    assert keras_rgemma.__all__ == api.__all__
    assert ("keras", *export.TARGETS) == choices.FORMATS
    assert tuple(export.DTYPES) == choices.DTYPES
