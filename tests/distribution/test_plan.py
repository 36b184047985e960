"""`keras_rgemma.plan`: what it refuses, chooses, looks for, keeps and prints."""

import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import pytest
from compilers import libtpu_folder, run

import keras_rgemma
import tiny
from backend_independent import backend_independent
from keras_rgemma.cli import main
from keras_rgemma.config import RGemmaConfig
from keras_rgemma.distribution import compiled, compiling, plan, search
from keras_rgemma.distribution.devices import DEVICES, device_named
from keras_rgemma.distribution.report import Program
from keras_rgemma.distribution.settings import read_settings

pytestmark = backend_independent
GB = 10**9
FACTS = {
    "weight_bytes": 5 * GB,
    "optimizer_bytes": 0,
    "state_bytes": 0,
    "fits": True,
    "flops": 1e12,
    "bytes_accessed": 9.0 * GB,
    "argument_bytes": 5 * GB,
    "output_bytes": 0,
    "alias_bytes": 0,
    "code_bytes": 0,
    "trace_s": 1.0,
    "compile_s": 2.0,
    "host_bytes": GB,
    "collectives": [
        {"kind": "all-reduce", "arrays": "bf16[8]", "devices": 8, "nbytes": GB, "count": 2}
    ],
}


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """A compiler whose programs take 5 GB and a megabyte a token; the list of its jobs."""
    jobs = []

    def run(job, tick):
        jobs.append(job)
        temporary = 10**6 * job["rows"] * job["tokens"]
        if 5 * GB + temporary > DEVICES[job["device"]].memory:
            sizes = {
                name: FACTS[name] for name in ("weight_bytes", "optimizer_bytes", "state_bytes")
            }
            return {**sizes, "fits": False, "needed_bytes": 5 * GB + temporary, "host_bytes": GB}
        return {**FACTS, "temporary_bytes": temporary}

    monkeypatch.setattr(compiling, "_run", run)
    monkeypatch.setattr(compiling, "_is_there", lambda module: True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return jobs


def settings(device="v5e-8", task="train", length=4096, batch=8, preset="rgemma_2b_en", **kwargs):
    config = RGemmaConfig(**plan._architecture(preset))
    count = config.parameter_count
    return read_settings(config.to_dict(), count, device, task, length, batch, **kwargs)


def test_the_largest_sizes_that_fit_are_found_on_a_line(compiler):
    found = keras_rgemma.plan("rgemma_2b_en", "v5e-1", "lora", length=4096, batch=2)
    tokens = (DEVICES["v5e-1"].memory - 5 * GB) // 10**6
    assert found.fits and found.is_verified and found.advice == []
    assert found.largest_length == tokens // 2 // 128 * 128
    assert found.largest_batch == tokens // 4096
    assert [(x["rows"], x["tokens"]) for x in compiler] == [
        (2, 4096),
        (2, 2048),
        (2, found.largest_length),
    ]


def test_a_task_that_is_too_large_is_told_what_to_change(compiler):
    found = keras_rgemma.plan("rgemma_2b_en", "v5e-1", "lora", length=8192, batch=4)
    assert not found.fits and found.programs[0].tokens_per_second is None
    assert found.largest_batch == 1
    lines = "\n".join(found.advice)
    assert "--batch 1" in lines and "gradient_accumulation_steps=4" in lines
    assert f"--length {found.largest_length}" in lines and "--task qlora" in lines
    assert "--device v5e-4" in lines
    assert "does not fit: 37.77 GB of 16.91 GB" in str(found)


def test_generation_compiles_a_chunk_and_looks_for_rows(compiler):
    found = keras_rgemma.plan("rgemma_2b_en", "v5e-1", length=100_000, batch=1)
    assert [x["program"] for x in compiler] == ["decode", "prefill", "prefill", "prefill"]
    assert {x["tokens"] for x in compiler[1:]} == {2048}
    assert found.largest_batch == (DEVICES["v5e-1"].memory - 5 * GB) // (2048 * 10**6)
    assert found.largest_length is None and "any length" in str(found)


def test_bounds_follow_from_published_rates(compiler):
    found = keras_rgemma.plan("rgemma_2b_en", "v5e-8", "lora", length=128, batch=8, search=False)
    (program,) = found.programs
    assert len(compiler) == 1
    assert program.sent_bytes == 2 * GB * 2 * 7 / 8
    assert program.limit == "links"
    assert program.tokens_per_second == pytest.approx(8 * 128 / (3.5 * GB / 200e9))
    count = RGemmaConfig(**plan._architecture("rgemma_2b_en")).parameter_count
    assert program.flops == max(1e12, 4 * count * 8 * 128 / 8)
    text = str(found)
    for words in ("mesh 8 x 1", "2 x all-reduce of bf16[8] among 8", "by links", "9.00 GB moved"):
        assert words in text, words


def test_what_was_compiled_is_kept(compiler, monkeypatch):
    for _ in range(2):
        keras_rgemma.plan("rgemma_2b_en", "v5e-1", "lora", search=False)
    assert len(compiler) == 1
    keras_rgemma.plan("rgemma_2b_en", "v5e-1", "lora", search=False, rank=4)
    keras_rgemma.plan("rgemma_2b_en", "v5e-1", "lora", search=False, cache=False)
    assert len(compiler) == 3
    monkeypatch.setattr(compiling, "_version", lambda name: "another")
    keras_rgemma.plan("rgemma_2b_en", "v5e-1", "lora", search=False)
    assert len(compiler) == 4


def test_the_command_prints_the_plan(compiler, capsys):
    arguments = ["plan", "rgemma_2b_en", "--device", "v5e-1", "--task", "qlora", "--no-search"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert "rounded to int4, LoRA of rank 8, adamw" in out and "It fits" in out
    assert "Compiled train of 1 x 2048 for v5e-1" in err
    assert main([*arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["programs"][0]["weight_bytes"] == 5 * GB and err == ""


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"device": "v5e-9"}, ("'v5e-9'", "Did you mean 'v5e-8'", "8xH100")),
        ({"task": "tune"}, ("task='tune'", "qlora")),
        ({"length": 0}, ("`length`", "0")),
        ({"batch": 1.5}, ("`batch`", "1.5")),
        ({"dtype": "fp8"}, ("dtype='fp8'", "bfloat16")),
        ({"quantize": "int2"}, ("quantize='int2'", "int4")),
        ({"quantize": "int8"}, ("task='qlora'", "quantize='int8'")),
        ({"optimizer": "adm"}, ("optimizer='adm'", "adamw")),
        ({"rank": 8}, ("`rank`", "'train'")),
        ({"task": "lora", "rank": 0}, ("`rank`", "0")),
        ({"mesh": "2x8"}, ("2x8", "16", "8x1", "1x8")),
        ({"mesh": "8"}, ("'8'", "'1x8'")),
        ({"mesh": (8, 1), "batch": 4}, ("batch of 4", "multiple of 8")),
        ({"device": "T4", "dtype": "bfloat16", "batch": 1}, ("T4", "dtype='float16'")),
    ],
)
def test_bad_input_is_named_with_the_way_out(changes, words):
    with pytest.raises(ValueError) as error:
        settings(**changes)
    assert all(word in str(error.value) for word in words), error.value


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match="rgemma_2b_en"):
        keras_rgemma.plan("rgemma_2b", "v5e-1")


@pytest.mark.parametrize(
    "device, extra", [("v5e-1", "plan-tpu"), ("H100", "plan-gpu"), ("T4", "plan-gpu")]
)
def test_a_compiler_that_is_missing_is_named_with_its_extra(monkeypatch, device, extra):
    monkeypatch.setattr(compiling, "_is_there", lambda module: module == "jax")
    with pytest.raises(ImportError, match=rf"keras-rgemma\[{extra}\]"):
        keras_rgemma.plan("rgemma_2b_en", device)


def test_meshes_divide_rows_first_and_weights_where_they_must():
    assert settings(task="lora").mesh == (8, 1) and not settings(task="lora").fully_sharded
    assert settings(preset="rgemma_9b_en").fully_sharded
    assert settings(task="lora", batch=1).mesh == (1, 8)
    assert settings(task="generate").mesh == (8, 1)
    assert settings(task="generate", preset="rgemma_9b_en").mesh == (2, 4)
    assert settings(mesh="1x8", fully_sharded=True).fully_sharded is False


def test_an_end_of_the_line_that_does_not_fit_is_tried_once_more():
    """Memory that grows faster than the line says."""

    def program(tokens):
        total = 10 * tokens if tokens <= 1024 else 10_240 + 30 * (tokens - 1024)
        return Program(
            "train", 1, tokens, *[0] * 4, total, total <= 40_000, *[0] * 3, 0, [], *[0] * 5
        )

    known = [(x.tokens, x.total_bytes) for x in (program(1024), program(512))]
    found = search._verified(known, [1024, 512], 40_000, 128, 1 << 20, program)
    assert found == (1920, True) and program(2048 + 128).fits is False


def test_messages_of_the_compiler_tell_what_is_needed():
    def needed(text):
        return compiled.needed_bytes(jax.errors.JaxRuntimeError(text))

    first = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
    assert needed(f"{first}temporaries (17.5G) exceeds available HBM (15.75G).") == 17.5 * 2**30
    second = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 512.00M of 15.75G hbm"
    assert needed(second) == 2**29
    assert needed("RESOURCE_EXHAUSTED: scoped vmem") == 0
    assert needed("INTERNAL: Mosaic failed") is None
    assert compiled.needed_bytes(ValueError(first)) is None


def test_each_device_is_complete():
    for name, device in DEVICES.items():
        assert device_named(name) is device and device.memory > 2**33
    assert importlib.util.find_spec("keras_rgemma.distribution.worker")


@pytest.mark.slow
def test_the_command_compiles_in_a_process_of_its_own(tmp_path):
    """On PyTorch; errors of the process come through, and nothing is cached then."""
    env = {"KERAS_BACKEND": "torch", "XDG_CACHE_HOME": str(tmp_path)}
    command = ["-m", "keras_rgemma.cli", "plan", "rgemma_tiny_en", "--device", "v5e-8"]
    done = run(*command, "--task", "lora", "--batch", "8", "--mesh", "4x2", "--no-search", **env)
    assert done.returncode == 0, done.stderr
    assert "all-reduce" in done.stdout and "It fits" in done.stdout
    assert len(list((tmp_path / "keras_rgemma").rglob("*.json"))) == 1
    tiny.causal_lm(vocabulary_size=403).save_to_preset(tmp_path / "odd")
    command[3] = str(tmp_path / "odd")
    done = run(*command, "--mesh", "1x8", "--no-search", **env)
    assert done.returncode == 1, done.stderr
    assert "`vocabulary_size`, 403" in done.stderr and "whose axis 'model'" in done.stderr
    assert len(list((tmp_path / "keras_rgemma").rglob("*.json"))) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("default_handler")  # which the process inherits as the default
def test_ctrl_c_ends_the_process_that_compiles(tmp_path):
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "KERAS_BACKEND": "torch"}
    env["PYTHONPATH"] = os.pathsep.join([*filter(None, sys.path), libtpu_folder()])
    command = [sys.executable, "-m", "keras_rgemma.cli", "plan", "rgemma_2b_en"]
    process = subprocess.Popen(
        [*command, "--device", "v5e-1", "--no-search"],
        env=env,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
    end = time.monotonic() + 120
    while not (ids := children.read_text().split()):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130 and "stopped" in process.stderr.read()
    assert not any(os.path.exists(f"/proc/{child}") for child in ids)
