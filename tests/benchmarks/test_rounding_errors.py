"""int8 and int4 keep what the preset knows of held-out text; a broken bound is reported.

held_out.json holds documents that the preset was not trained on: a part of those that `prepare.py`
of examples/train_rgemma_tiny makes, under the licences of presets/rgemma_tiny_en/LICENSES.md.
"""

import copy
import itertools
import json
import pathlib

import benchmark_scripts
import numpy as np
import pytest

from backend_independent import backend_independent

HELD_OUT = pathlib.Path(__file__).parent / "held_out.json"
ERROR = {"rms": 0.01, "max": 0.1}
# A report that keeps every bound, barely.
REPORT = {
    "command": "python benchmarks/rounding.py",
    "machine": {"cpus": 2, "processor": "x86_64"},
    "versions": {"keras": "3", "commit": "abc"},
    "logits": {
        "110m": {
            "recurrentgemma": {
                **{"parameters": 10**8, "tokens": 768, "window": 512},
                "errors": {"float32": ERROR, "bfloat16": {"rms": 0.02, "max": 0.1}},
            },
            "torch": dict.fromkeys(("float32", "bfloat16", "int8", "int4"), ERROR),
        }
    },
    "bits": {
        "torch": {
            "float32": {"wordnet": 0.5, "bible": 1.0},
            "bfloat16": {"wordnet": 0.5, "bible": 1.0},
            "int8": {"wordnet": 0.5, "bible": 1.009},
            "int4": {"wordnet": 0.524, "bible": 1.0},
        }
    },
}


@pytest.fixture(scope="module")
def scripts():
    with benchmark_scripts.importable() as module:
        yield module


@pytest.fixture(scope="module")
def child(scripts):
    return scripts("rounding_errors")


def preset(child, variant):
    """The preset in a variant."""
    return child.keras_rgemma.RGemmaCausalLM.from_preset(child.PRESET, **child.VARIANTS[variant])


def streams(lm):
    """The token ids of documents, one after another, and the bytes of their texts, by source."""
    tokenize = lm.preprocessor.tokenizer.token_id_rows
    for source, documents in json.loads(HELD_OUT.read_text(encoding="utf-8")).items():
        ids = itertools.chain.from_iterable((2, *row, 1) for row in tokenize(documents))
        yield source, np.fromiter(ids, "uint16"), sum(len(text.encode()) for text in documents)


@pytest.fixture(scope="module")
def float32_bits(child):
    """Bits per byte of the preset by source, and those that the script of the training finds."""
    lm = preset(child, "float32")
    return {
        source: (child.bits_per_byte(lm, *text), child.train.bits_per_byte(lm, "rgemma", *text))
        for source, *text in streams(lm)
    }


def test_bits_per_byte_are_those_of_the_training(float32_bits):
    for ours, expected in float32_bits.values():
        assert ours == pytest.approx(expected, rel=1e-4)
        assert ours < 2  # a model that has learnt nothing needs 3.2


@pytest.mark.parametrize("variant", ["int8", "int4"])
def test_rounded_weights_keep_bits_per_byte(variant, child, float32_bits, scripts):
    lm = preset(child, variant)
    bits = {"float32": {source: ours for source, (ours, _) in float32_bits.items()}}
    bits[variant] = {source: child.bits_per_byte(lm, *text) for source, *text in streams(lm)}
    most = scripts("targets").BITS_PER_BYTE[variant]
    for source, change in scripts("rounding").changes(bits, variant).items():
        assert 0 < abs(change) < most, source  # nothing is rounded without a change


@backend_independent
def test_errors_are_shares_of_the_logits(scripts):
    truth = np.array([[3.0, -4.0], [0.0, 5.0]])  # of the root mean square 12.5^0.5
    found = scripts("rounding_errors").error(np.add(truth, [[0.0, 0.0], [0.5, 0.0]]), truth)
    assert found == pytest.approx({"rms": 0.25 / 12.5**0.5, "max": 0.5 / 12.5**0.5})


@backend_independent
def test_a_page_has_errors_changes_and_bounds(scripts):
    page = scripts("rounding").page(REPORT)
    same = "0.5000 (+0.00%)"
    assert "| keras-rgemma | PyTorch | 1.0e-02 / 1.0e-01 |" in page
    assert f"| WordNet | PyTorch | 0.5000 | {same} | {same} | 0.5240 (+4.80%) |" in page
    assert "All of this holds." in page


@backend_independent
@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("bits", "torch", "int8", "bible"), 1.01, "int8 changes the bits per byte of Bible by +1"),
        (("bits", "torch", "int4", "wordnet"), 0.47, "int4 changes the bits per byte of WordNet"),
        (("logits", "110m", "torch", "bfloat16", "rms"), 0.021, "110m, PyTorch: bfloat16"),
        (("logits", "110m", "torch", "bfloat16", "max"), 0.11, "110m, PyTorch: bfloat16"),
    ],
)
def test_a_broken_bound_is_reported(path, value, message, scripts):
    report = copy.deepcopy(REPORT)
    *parents, last = path
    part = report
    for name in parents:
        part = part[name]
    part[last] = value
    (sentence,) = scripts("rounding").broken_bounds(report)
    assert sentence.startswith(("PyTorch", "110m")) and message in sentence
    assert sentence in scripts("rounding").page(report)


@backend_independent
@pytest.mark.slow
def test_errors_of_logits_are_measured_and_written(tmp_path):
    options = ["--models", "tiny", "--backends", "jax", "--no-bits", "--folder", tmp_path]
    printed, found = benchmark_scripts.run("rounding.py", *options, "--write", "tiny")
    assert found == json.loads((tmp_path / "results" / "tiny.json").read_text())
    assert (tmp_path / "tiny.md").read_text() in printed
    errors = found["logits"]["tiny"]["jax"]
    assert errors["float32"]["rms"] < errors["bfloat16"]["rms"] < errors["int4"]["rms"]
