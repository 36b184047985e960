"""`verify` says "equal" for checkpoints as they are published, and names the layer that differs.

The jobs run in this process, where what DeepMind's model computed is kept; one test runs them as a
user does, in processes.
"""

import itertools
import json
import pathlib
import re
import shutil
import types

import keras
import numpy as np
import pytest
import safetensors.numpy
from recurrentgemma import common

import tiny
from backend_independent import backend_independent
from keras_rgemma.checkpoints import deepmind, export, names, registry
from keras_rgemma.checkpoints.folder import open_checkpoint
from keras_rgemma.cli import main
from keras_rgemma.config import RGemmaConfig
from keras_rgemma.evaluation import verify as module
from keras_rgemma.evaluation.verify import memory, processes, recurrentgemma, texts, verify, worker
from keras_rgemma.evaluation.verify.compare import TOLERANCES
from keras_rgemma.evaluation.verify.tensors import deepmind_arrays
from parity.random_models import random_lm

# As the published models, small: the window of 2048, the cap, scaled embeddings, one key/value
# head, and a last group of two recurrent layers. The 9B model has more heads for its width.
FAMILIES = {
    "2b": {"num_layers": 5, "hidden_dim": 40, "intermediate_dim": 120, "num_query_heads": 2},
    "9b": {"num_layers": 2, "hidden_dim": 64, "intermediate_dim": 192, "num_query_heads": 4},
}
PUBLISHED = [  # a family, its variant, and the format in which Google published it
    ("2b", "base", "transformers"),
    ("2b", "instruct", "flax"),
    ("2b", "base", "torch"),
    ("9b", "instruct", "transformers"),
    ("9b", "base", "flax"),
]
SEEDS = {"base": 1, "instruct": 2}


def language_model(family, variant):
    lm = random_lm(SEEDS[variant], vocabulary_size=400, **FAMILIES[family])
    # With less of the token itself in the stream its logits do not win every time.
    table = lm.backbone.token_embedding.embeddings
    table.assign(0.3 * tiny.numpy(table))
    return lm


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A function that returns the folder of a random checkpoint, with nothing of ours in it."""
    folders = {}

    def write(family="2b", variant="base", format="transformers"):
        key = (family, variant, format)
        if key not in folders:
            folder = folders[key] = tmp_path_factory.mktemp("checkpoints") / "-".join(key)
            lm = language_model(family, variant)
            tokenizer = None if format == "torch" else tiny.tokenizer()
            export.export(lm.backbone, tokenizer, folder, format, "float32")
            (folder / deepmind.CONFIG).unlink(missing_ok=True)
        return folders[key]

    return write


@pytest.fixture(scope="module")
def observed():
    """What references computed, by their job."""
    return {}


@pytest.fixture
def here(monkeypatch, observed):
    """Runs jobs in this process."""

    def run(self, job, backend):
        key = (job.kind, job.folder, job.dtype, job.new_tokens)
        if job.backend is None:
            return worker.run(job)
        if key not in observed:
            observed[key] = worker.run(job)
        return observed[key]

    monkeypatch.setattr(processes.Processes, "run", run)


def check(preset, **options):
    options = {"new_tokens": 0, "backends": [keras.config.backend()], **options}
    return verify(str(preset), progress=False, **options)


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_a_small_checkpoint_is_equal_on_every_backend(checkpoint, observed):
    report = check(checkpoint("9b", "instruct", "transformers"), new_tokens=5)
    assert report.verdict == "equal" and report.is_equal
    comparison = report.comparisons[keras.config.backend()]
    assert set(comparison.texts) == {"short", "left-padded", "packed", "long"}
    assert comparison.first is None
    for layer in comparison.layers:
        # A tenth of the tolerance, so that the verdict does not hang on it.
        assert layer.output <= TOLERANCES["float32"] / 10, layer
        assert (layer.state is None) == (not layer.name.startswith("block")), layer
    assert [text["equal"] for text in comparison.greedy] == [True] * 3
    (theirs,) = observed.values()
    written = [theirs.arrays[f"greedy/{k}/tokens"].tolist() for k in range(3)]
    assert len({*map(tuple, written)}) == 3 and len({*itertools.chain(*written)}) > 3


@pytest.mark.slow
@backend_independent
@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("published", PUBLISHED, ids="-".join)
def test_every_published_layout_is_equal(published, checkpoint):
    report = check(checkpoint(*published))
    assert report.verdict == "equal"
    assert report.about["source"].startswith("format ")
    compared = "compared with" if published[2] != "torch" else "random tokens"
    assert compared in report.about["tokenizer"]
    texts = [*report.comparisons["torch"].texts]
    assert texts == ["short", "left-padded", "packed", "long"]


# A weight, the element that is changed, and the layer that is to be named.
CHANGES = {
    "an embedding": ("token_embedding/embeddings", (2, 3), "the embedding (token_embedding)"),
    # No text has this token, so that it counts as an output alone.
    "an output": ("token_embedding/embeddings", (0, 7), "the logits (token_embedding as the"),
    "a norm": ("block_0/temporal_pre_norm/scale", (5,), "layer 0 (block_0, recurrent)"),
    "a convolution": ("block_1/recurrent_block/conv_1d/kernel", (0, 9), "layer 1 (block_1"),
    "a decay": ("block_1/recurrent_block/rg_lru/a_param", (4,), "layer 1 (block_1"),
    "a gate": ("block_0/recurrent_block/rg_lru/input_gate/kernel", (1, 2, 3), "layer 0 "),
    "a key": ("block_2/attention_block/key/kernel", (6, 7), "layer 2 (block_2, attention)"),
    "an output bias": ("block_2/attention_block/attention_output/bias", (1,), "layer 2 "),
    "a branch": ("block_3/mlp_block/ffw_up/kernel", (3, 50), "layer 3 (block_3, recurrent)"),
    "the last bias": ("block_4/mlp_block/ffw_down/bias", (0,), "layer 4 (block_4"),
    "the final norm": ("final_norm/scale", (11,), "the norm after the last layer (final_norm)"),
}


@backend_independent
@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("change", CHANGES)
def test_the_layer_of_one_changed_weight_is_named(change, checkpoint, tmp_path):
    path, element, place = CHANGES[change]
    original = checkpoint()
    shutil.copytree(original, tmp_path / "changed")
    file = tmp_path / "changed" / "model.safetensors"
    config = open_checkpoint(str(original)).config
    (location,) = (w.huggingface for w in names.weights(config) if w.path == path)
    tensors = dict(safetensors.numpy.load_file(file))
    weight = np.array(location.transform.from_file(tensors[location.name]))
    weight[element] += 0.3
    tensors[location.name] = np.ascontiguousarray(location.transform.to_file(weight))
    safetensors.numpy.save_file(tensors, file, {"format": "pt"})
    report = check(tmp_path / "changed", against=str(original))
    assert report.verdict.startswith(f"different: first at {place}")
    assert not report.is_equal


@pytest.mark.slow
@backend_independent
@pytest.mark.usefixtures("here")
def test_transformers_is_a_reference_up_to_the_window(checkpoint, observed):
    folder = checkpoint()
    report = check(folder, reference="transformers", new_tokens=3)
    assert report.verdict == "equal"
    comparison = report.comparisons["torch"]
    assert set(comparison.texts) == {"short", "long"}
    assert {layer.state for layer in comparison.layers} == {None}
    assert len(comparison.greedy) == 3 and "transformers" in report.about["reference"]


@backend_independent
@pytest.mark.usefixtures("here")
def test_a_tokenizer_that_differs_is_named(checkpoint, tmp_path):
    shutil.copytree(checkpoint(), tmp_path / "other")
    (tmp_path / "other" / "tokenizer.model").write_bytes(tiny.proto(end_of_turn=False))
    report = check(tmp_path / "other", against=str(checkpoint()))
    assert report.verdict.startswith("different: first at the tokenizer, in ")


@backend_independent
@pytest.mark.usefixtures("here")
def test_the_report_is_markdown_with_a_verdict_in_its_last_line(checkpoint):
    report = check(checkpoint())
    lines = str(report).splitlines()
    assert lines[-1] == "equal"
    for word in ("keras ", "keras-hub ", "torch ", "recurrentgemma ", "Python ", "CPU", "float32"):
        assert any(word in line for line in lines[:14]), word
    rows = [line for line in lines if line.startswith("| block_")]
    assert len(rows) == 5 and all(row.count("|") == 6 for row in rows)
    peak, _ = report.peaks["block_3"]
    assert f"{peak:,.4g}" in rows[3]
    # The largest activation is measured: the same as in what the layer returns and reads.
    assert max(report.peaks.values())[0] > 1 and "below 65,504" in report.float16


@pytest.mark.slow
@backend_independent
@pytest.mark.usefixtures("here")
def test_the_code_of_the_page_runs_on_the_embedded_preset():
    page = pathlib.Path(__file__).parents[2] / "docs" / "verify.md"
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    names = {}
    exec(compile(block, page.name, "exec"), names)
    report = names["report"]
    assert report.verdict == "equal"
    assert "written by this package" in report.about["its weights"]
    assert "on 11 texts" in report.about["tokenizer"]


@backend_independent
def test_activations_that_float16_cannot_hold_are_told():
    for peak, words in ((7e4, "overflows"), (3e4, "may overflow"), (3e3, "fit into float16")):
        report = module.Report({}, {}, {"block_1": (peak, "block_1/x"), "block_0": (1.0, "y")})
        assert words in report.float16 and "block_1/x" in report.float16


@backend_independent
@pytest.mark.parametrize("format", ["transformers", "flax", "torch"])
def test_the_rules_of_the_reference_agree_with_the_table_of_names(format, tmp_path):
    backbone = language_model("2b", "base").backbone
    export.export(backbone, None, tmp_path / "x", format, "float32")
    found = deepmind_arrays(open_checkpoint(str(tmp_path / "x")).open_weights(), np.array)
    expected = dict(export.tensors(backbone, "flax", "float32"))
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


@backend_independent
@pytest.mark.parametrize("name", ["rgemma_2b_en", "rgemma_instruct_9b_en"])
def test_published_models_have_deepminds_own_settings(name):
    preset = {"2": "RECURRENT_GEMMA_2B_V1", "9": "RECURRENT_GEMMA_9B_V1"}[re.sub(r"\D", "", name)]
    expected = common.GriffinConfig.from_preset(common.Preset[preset])
    config = config_of(name)
    found = recurrentgemma.griffin_config(config)
    assert found._replace(scan_type=None) == expected._replace(scan_type=None)
    # A setting that is wrong here is not handed on to the reference.
    narrow = RGemmaConfig(**{**config.to_dict(), "sliding_window_size": 1024})
    assert recurrentgemma.griffin_config(narrow).attention_window_size == 2048


def config_of(name):
    folder = pathlib.Path(registry.presets()[name]["path"])
    sizes = json.loads((folder / "config.json").read_text())["config"]
    return RGemmaConfig(**{k: v for k, v in sizes.items() if k not in ("name", "trainable")})


@backend_independent
def test_rows_hold_what_their_names_say():
    window = 100
    material = texts.make_material(tiny.tokenizer(), 400, window)
    short, long = material.batches["short"], material.batches["long"]
    start = tiny.tokenizer().start_token_id
    assert long.token_ids.shape == (1, window + texts.BEYOND)
    assert {0, window - 1, window, window + 1, window + texts.BEYOND - 1} <= {*long.places}
    plain, padded, packed = short.padding_mask
    assert plain.all() and not padded[: texts.PADS].any() and padded[texts.PADS :].all()
    assert {*packed} == {0, 1, 2, 3} and packed[-1] == 3
    first = [packed.tolist().index(document) for document in (1, 2, 3)]
    assert (short.token_ids[2, first] == start).all()
    assert (short.positions()[2, first] == 0).all()
    assert len({len(prompt) for prompt in material.prompts}) == 1
    ends = [ids[-3:] for ids in tiny.tokenizer().token_id_rows(list(texts.PROMPTS))]
    assert [prompt[-3:] for prompt in material.prompts] == [list(x) for x in ends]


@backend_independent
@pytest.mark.usefixtures("here")
def test_bad_input_is_answered_with_what_to_do(checkpoint, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"Unknown preset 'rgemma_3b'.*rgemma_2b_en"):
        check("rgemma_3b")
    with pytest.raises(ValueError, match=r"griffin_7b.*no public weights"):
        check("griffin_7b")
    with pytest.raises(ValueError, match=r"`dtype` must be one of.*'int8'"):
        check(checkpoint(), dtype="int8")
    with pytest.raises(ValueError, match=r"`reference` must be.*'flax'"):
        check(checkpoint(), reference="flax")
    with pytest.raises(ValueError, match=r"backend is one of.*'numpy'"):
        check(checkpoint(), backends=["numpy"])
    with pytest.raises(ValueError, match="`new_tokens`"):
        check(checkpoint(), new_tokens=-1)
    with pytest.raises(ValueError, match=r"`hidden_dim` is 40 .* 64 .*different architectures"):
        check(checkpoint(), against=str(checkpoint("9b", "instruct")))
    shutil.copytree(checkpoint(), tmp_path / "empty")
    (tmp_path / "empty" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds neither model\.safetensors"):
        check(tmp_path / "empty")
    shutil.copytree(checkpoint(), tmp_path / "heads")
    config = json.loads((tmp_path / "heads" / "config.json").read_text())
    (tmp_path / "heads" / "config.json").write_text(json.dumps({**config, "conv1d_width": 3}))
    with pytest.raises(ValueError, match=r"no setting for \{'conv_width': 3\}.*transformers"):
        check(tmp_path / "heads")
    monkeypatch.setattr(memory, "free_bytes", lambda: 10**9)
    with pytest.raises(RuntimeError, match=r"needs about 1\.\d GB .* 1\.0 GB free\. Use a mach"):
        check(checkpoint(), reference="transformers", new_tokens=1)
    with pytest.raises(RuntimeError, match=r"GB free\. On a CPU --dtype float32.*--no-memory"):
        check(checkpoint(), dtype="bfloat16")
    find_spec = module.importlib.util.find_spec
    lacking = {"recurrentgemma", "transformers", "jax"}
    monkeypatch.setattr(
        module.importlib.util, "find_spec", lambda x: None if x in lacking else find_spec(x)
    )
    with pytest.raises(ImportError, match=r"'recurrentgemma'.*keras-rgemma\[reference\]"):
        check(checkpoint())
    with pytest.raises(ImportError, match=r"backend 'jax' is not.*keras-rgemma\[jax\]"):
        check(checkpoint(), backends=["jax"])


@backend_independent
def test_memory_is_that_of_one_model():
    config = config_of("rgemma_2b_en")
    batches = texts.make_material(None, config.vocabulary_size, 2048).batches
    full, half = (memory.needed_bytes(config, x, batches) for x in ("float32", "bfloat16"))
    weights = 4 * config.parameter_count
    assert weights < full < 1.9 * weights and weights / 2 < half < full
    assert memory.free_bytes() > 0
    copies = [memory.copies_on_cpu(config, "bfloat16", greedy) for greedy in (False, True)]
    assert copies == [weights, 2 * weights]  # in float32, on a CPU
    assert memory.copies_on_cpu(config, "float32", True) == 0


@backend_independent
def test_a_gpu_is_asked_for_its_memory():
    gpu = types.SimpleNamespace(
        is_cpu=lambda: False, free_bytes=lambda: 10, device_name=lambda: "T4"
    )
    memory.check(10, 10**9, gpu, "float32")
    with pytest.raises(RuntimeError, match=r"T4 has .*Pass --dtype bfloat16, which needs half"):
        memory.check(11, 0, gpu, "float32")


@pytest.mark.slow
@backend_independent
def test_the_command_runs_processes_and_returns_the_verdict(checkpoint, tmp_path, capfd):
    lm_options = ["--reference", "transformers", "--backends", "torch", "--new-tokens", "0"]
    assert main(["verify", str(checkpoint("9b", "instruct")), *lm_options]) == 0
    out, err = capfd.readouterr()
    assert out.splitlines()[-1] == "equal"
    assert "[1/2] transformers on torch" in err and "[2/2] keras-rgemma on torch" in err


@backend_independent
@pytest.mark.usefixtures("here")
def test_the_command_fails_where_something_differs(checkpoint, capsys):
    options = ["--reference", "transformers", "--backends", "torch", "--new-tokens", "0"]
    changed = ["--against", str(checkpoint("2b", "instruct"))]
    assert main(["verify", str(checkpoint()), *options, *changed]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("different: first at the embedding")
    assert main(["verify", "rgemma_3b"]) == 1
    assert "keras-rgemma: Unknown preset" in capsys.readouterr().err


@backend_independent
def test_a_process_that_is_killed_is_told_from_one_that_fails(monkeypatch, checkpoint):
    config = open_checkpoint(str(checkpoint())).config
    job = processes.Job("ours", "nowhere", "float32", config)
    for code, words in ((-9, "for want of memory.*more memory"), (3, "ended with 3")):
        monkeypatch.setattr(processes, "_wait", lambda *_, code=code: code)
        with processes.Processes() as run, pytest.raises(RuntimeError, match=words):
            run.run(job, "torch")
