"""Stands in for what the pages name and no test can fetch: see `STAND_INS` in tests/pages.py."""

import pathlib

import datasets

from keras_rgemma.distribution import compiling

QUESTIONS = [
    {"question": "What is a lighthouse?", "choices": ["a house", "a light at sea"], "answer": 1},
]


def upload_preset(uri, preset):
    """Takes the place of `keras_hub.upload_preset`: checks that there is a preset to upload."""
    assert uri and (pathlib.Path(preset) / "config.json").is_file()


def questions():
    """The settings of a task of the evaluation harness, a dict that it takes in place of a name."""
    return {
        "task": "questions",
        "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(QUESTIONS)},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}],
    }


def compile_for_devices(monkeypatch):
    """Lets `keras_rgemma.plan` compile programs that take 5 GB and a megabyte a token."""
    facts = {
        "weight_bytes": 5 * 10**9,
        "optimizer_bytes": 0,
        "state_bytes": 0,
        "fits": True,
        "flops": 1e12,
        "bytes_accessed": 9e9,
        "argument_bytes": 5 * 10**9,
        "output_bytes": 0,
        "alias_bytes": 0,
        "code_bytes": 0,
        "trace_s": 1.0,
        "compile_s": 2.0,
        "host_bytes": 10**9,
        "collectives": [],
    }

    def run(job, tick):
        return {**facts, "temporary_bytes": 10**6 * job["rows"] * job["tokens"]}

    monkeypatch.setattr(compiling, "_run", run)
    monkeypatch.setattr(compiling, "_is_there", lambda module: True)
