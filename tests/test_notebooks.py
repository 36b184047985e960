"""The notebooks in examples/notebooks/ run as they stand, from a wheel, each on one backend.

A kernel of its own runs each. Its first cell installs the wheel of this checkout into a folder,
without anything else and without a network. A cell behind the one with the tag "parameters" makes
the work small.
"""

import base64
import io
import os
import pathlib
import re
import subprocess
import sys

import h5py
import keras
import keras_hub
import matplotlib.image
import nbclient
import nbformat
import pytest

from backend_independent import backend_independent
from checkpoints import loopback
from keras_rgemma import RGemmaBackbone, RGemmaCausalLM

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / "examples" / "notebooks"
BACKENDS = {
    "convert_and_share": "torch",
    "gemma_migration": "jax",
    "long_document": "tensorflow",
    "lora_finetuning": "torch",
    "qlora_t4": "torch",
    "quickstart": "tensorflow",
    "several_devices": "jax",
}
PRESET = "rgemma_tiny_en"
SECONDS = 300  # of a cell; some take ten on a machine with nothing else to do
WHERE = "import keras_rgemma\nprint(keras_rgemma.__file__)"


def runs(name):
    """Marks the test of a notebook, which runs on its backend alone."""
    is_here = keras.config.backend() == BACKENDS[name]
    skip = pytest.mark.skipif(not is_here, reason=f"{name} runs on {BACKENDS[name]}")
    return lambda test: pytest.mark.slow(skip(test))


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tagged(notebook, tag):
    """The places of the cells with a tag, list of int."""
    places = enumerate(notebook.cells)
    return [place for place, cell in places if tag in cell.metadata.get("tags", ())]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture
def execute(wheel, tmp_path, monkeypatch):
    """A function that runs a notebook with parameters and returns what its cells print.

    The notebook is kept as `executed.ipynb` in its working directory, which is `tmp_path`.
    """
    site, own = tmp_path / "site", tmp_path / "jupyter"
    site.mkdir()  # before the kernel starts: Python forgets folders that were not there
    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(own))
    environment = {
        **{name: value for name, value in os.environ.items() if name != "MPLBACKEND"},
        "KERAS_BACKEND": keras.config.backend(),
        "KERAS_RGEMMA_PACKAGE": str(wheel),
        "PYTHONPATH": str(site),
        "PATH": f"{site / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PIP_TARGET": str(site),
        "PIP_NO_DEPS": "1",
        "PIP_NO_INDEX": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "HF_HOME": str(tmp_path / "hf"),
    }

    def run(name, more_environment=(), **parameters):
        notebook = read(name)
        (place,) = tagged(notebook, "parameters")
        names = re.findall(r"^(\w+) = ", notebook.cells[place].source, re.MULTILINE)
        assert set(parameters) <= set(names)
        lines = [f"{key} = {value!r}" for key, value in parameters.items()]
        notebook.cells.insert(place + 1, nbformat.v4.new_code_cell("\n".join(lines)))
        notebook.cells.append(nbformat.v4.new_code_cell(WHERE))
        resources = {"metadata": {"path": str(tmp_path)}}
        client = nbclient.NotebookClient(
            notebook,
            timeout=SECONDS,
            kernel_name="python3",
            resources=resources,
            coalesce_streams=True,  # as a browser does
        )
        try:
            client.execute(env={**environment, **dict(more_environment)})
        finally:
            nbformat.write(notebook, tmp_path / "executed.ipynb")
        assert pathlib.Path(printed(notebook.cells[-1]).strip()).is_relative_to(site)
        return "\n".join(map(printed, code_cells(notebook))), plots(notebook)

    return run


def printed(cell):
    """What a cell writes to standard output, str."""
    streams = [x.text for x in cell.outputs if x.output_type == "stream" and x.name == "stdout"]
    return "".join(streams)


def plots(notebook):
    """The plots of a notebook, list of arrays [height, width, 4]; none of them is blank."""
    outputs = [x for cell in code_cells(notebook) for x in cell.outputs if "data" in x]
    images = [x.data["image/png"] for x in outputs if "image/png" in x.data]
    found = [matplotlib.image.imread(io.BytesIO(base64.b64decode(image))) for image in images]
    assert all(image.std() > 0.05 for image in found)
    return found


def losses(text):
    """The losses before and after, a pair of floats."""
    ((before, after),) = re.findall(r"held-out loss ([\d.]+) -> ([\d.]+)", text)
    return float(before), float(after)


@pytest.fixture
def shallow(tmp_path):
    """The folder of a preset with the first half of the embedded preset's blocks.

    A program for several devices takes long to compile, by the number of blocks.
    """
    whole = RGemmaCausalLM.from_preset(PRESET)
    config = {**whole.backbone.get_config(), "num_layers": 3}
    backbone = RGemmaBackbone.from_config(config)
    weights = {weight.path: weight for weight in whole.backbone.weights}
    for weight in backbone.weights:
        weight.assign(weights[weight.path])
    lm = RGemmaCausalLM(backbone, whole.preprocessor)
    lm.save_to_preset(tmp_path / "shallow")
    return str(tmp_path / "shallow")


@runs("quickstart")
def test_quickstart(execute):
    out, images = execute("quickstart", OTHER_BACKEND="torch")
    generated = re.search(r"^In the beginning( of the .*)$", out, re.MULTILINE)[1]
    assert f"\n{generated}" in out  # the stream
    assert re.search(r"^A river is .*\n.+\n4 messages", out, re.MULTILINE)
    texts = dict(re.findall(r"^(tensorflow|torch): (And God said .*)$", out, re.MULTILINE))
    assert texts["tensorflow"] == texts["torch"]
    assert re.search(r"2,\d+ tokens are in 114,696 bytes", out)
    assert len(images) == 1


@runs("lora_finetuning")
def test_lora_finetuning(execute, tmp_path):
    out, images = execute("lora_finetuning", EXAMPLES=24, HELD_OUT=8, EPOCHS=1, BATCH_SIZE=4)
    before, after = losses(out)
    assert after < before - 0.3
    assert out.count("   before: ") == out.count("   after:  ") == 4
    assert "The same answers: True" in out
    assert len(images) == 1
    with h5py.File(tmp_path / "python.lora.h5") as file:
        assert len(file) > 0
    assert (tmp_path / "rgemma_python" / "model.weights.h5").exists()


@runs("qlora_t4")
def test_qlora_t4(execute, tmp_path):
    out, images = execute("qlora_t4", EXAMPLES=24, HELD_OUT=8, EPOCHS=1, BATCH_SIZE=4)
    assert "LossScaleOptimizer" in out
    before, after = losses(out)
    assert after < before - 0.3
    full, rounded = (float(x) for x in re.findall(r": ([\d.]+) MB$", out, re.MULTILINE)[:2])
    assert rounded < full / 6
    assert len(images) == 2
    assert "The same answer: True" in out  # of the preset that was saved
    assert (tmp_path / "rgemma_python_int4" / "model.weights.h5").exists()


@runs("long_document")
def test_long_document(execute):
    questions = ["What is a lambda?", "What is a class?"]
    out, images = execute("long_document", CHARACTERS=20_000, QUESTIONS=questions)
    assert out.count("the same after reading again: True") == len(questions)
    for question in questions:
        answers = re.findall(rf"^{re.escape(question)} -> (.+)$", out, re.MULTILINE)
        assert len(answers) == 2 and answers[0] == answers[1]  # alone, and in a batch
    without, with_state = (float(x) for x in re.findall(r": ([\d.]+) nats", out))
    assert with_state < without
    assert "nbytes=114696" in out
    assert len(images) == 2


@runs("convert_and_share")
def test_convert_and_share(execute, tmp_path):
    hub = loopback.Hub(main={})
    with loopback.serve(hub) as address:
        # Its other way to upload needs a server for parts of files.
        settings = {"HF_ENDPOINT": address, "HF_TOKEN": "a token", "HF_HUB_DISABLE_XET": "1"}
        out, images = execute("convert_and_share", settings, UPLOAD_TO="hf://someone/model")
    assert "\nEvery logit is the same: True" in out
    assert "From the hub, every logit is the same: True" in out
    assert "Wrote from_the_command, for keras" in out
    assert len(images) == 1
    files = dict(hub.files["main"])
    card = files.pop("README.md").decode()
    assert 'from_preset("hf://someone/model")' in card and "Terms of use" in card
    assert files == loopback.files_of(tmp_path / "my_rgemma")


@runs("several_devices")
def test_several_devices(execute, shallow):
    out, images = execute("several_devices", PRESET=shallow, EXAMPLES=16, EPOCHS=2)
    assert "8 devices: cpu:0" in out
    assert "The same as on one device: True" in out
    assert re.search(r"all-reduce of f32\[1, 1, 192\] among 4", out)
    assert float(re.search(r"largest difference: (\S+)", out)[1]) < 1e-5
    assert len(images) == 3


@runs("gemma_migration")
def test_gemma_migration(execute, shallow):
    out, images = execute("gemma_migration", PRESET=shallow, EXAMPLES=8, BATCH_SIZE=4)
    epochs = [float(x) for x in re.findall(r" - loss: ([\d.]+)", out)]
    assert len(epochs) == 4 and epochs[1] < epochs[0]
    assert epochs[2:] == pytest.approx(epochs[:2], abs=2e-4)  # printed with four digits
    assert re.search(r"block_1/recurrent_block/linear_y/kernel .*'model'", out)
    assert len(images) == 1


@backend_independent
def test_the_names_of_gemma_exist():
    notebook = read("gemma_migration")
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    names = set(re.findall(r"\b(?:keras_hub|keras)(?:\.\w+)+", text))
    assert len(names) > 8
    for name in names:
        value = {"keras": keras, "keras_hub": keras_hub}[name.split(".")[0]]
        for part in name.split(".")[1:]:
            value = getattr(value, part)


@backend_independent
def test_there_is_a_test_of_each_and_a_line_about_it():
    names = {path.stem for path in FOLDER.glob("*.ipynb")}
    assert names == set(BACKENDS)
    index = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\(notebooks/(\w+)\.ipynb\)", index)) == names


@backend_independent
@pytest.mark.parametrize("name", sorted(BACKENDS))
def test_a_notebook_is_a_source(name):
    """It holds no outputs, installs as all others do, and begins with the embedded preset."""
    notebook = read(name)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)
    assert cells[0].source == code_cells(read("quickstart"))[0].source
    assert 'os.environ.get("KERAS_RGEMMA_PACKAGE", "keras-rgemma")' in cells[0].source
    assert tagged(notebook, "install") == [notebook.cells.index(cells[0])]
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")
    (place,) = tagged(notebook, "parameters")
    assert notebook.cells[place] is cells[1]
    assert re.search(r'^(PRESET|SOURCE) = "rgemma_tiny_en"  # .*"', cells[1].source, re.MULTILINE)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
