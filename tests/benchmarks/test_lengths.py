"""Work of growing length is done and timed with either model. No test asserts a speed."""

import argparse

import benchmark_scripts
import keras
import numpy as np
import pytest

from backend_independent import backend_independent

LENGTHS = [9, 40]


@pytest.fixture(scope="module")
def lengths():
    with benchmark_scripts.importable() as module:
        yield module("lengths")


@pytest.fixture(scope="module")
def models(lengths):
    config = lengths.RGemmaConfig(**lengths.SIZES["tiny"])
    return {lengths.OURS: lengths.Ours(config), lengths.GEMMA: lengths.Gemma(config)}


def work(script, models, package, measure, **options):
    """The results of a measure in this process."""
    defaults = {"lengths": LENGTHS, "rows": [1], "prompt": 5, "new_tokens": 4, "repeats": 2}
    args = argparse.Namespace(package=package, measure=measure, **{**defaults, **options})
    report = {"results": [], "imports_bytes": 0}
    script.points(models[package], args, report)
    assert (report["length"], report["rows"]) == (args.lengths[-1], args.rows[-1])
    return report["results"]


@pytest.mark.slow
@pytest.mark.parametrize("measure", ["decode", "prefill", "latency"])
@pytest.mark.parametrize("package", ["keras-rgemma", "Gemma"])
def test_every_length_is_timed(lengths, models, package, measure):
    results = work(lengths, models, package, measure)
    assert [point["length"] for point in results] == LENGTHS
    new = {"decode": [4, 4]}.get(measure, LENGTHS)
    assert [point["tokens"] for point in results] == new
    for point in results:
        assert len(point["seconds"]) == 2 and min(point["seconds"]) > 0
        assert point["peak_bytes"] > 1e8  # a process with a backend in it


@pytest.mark.slow
@pytest.mark.parametrize("package", ["keras-rgemma", "Gemma"])
def test_a_step_is_timed_and_trains(lengths, package):
    config = lengths.RGemmaConfig(**lengths.SIZES["tiny"], gradient_checkpointing=True)
    model = (lengths.Ours if package == lengths.OURS else lengths.Gemma)(config)
    before = [keras.ops.convert_to_numpy(x) for x in model.lm.trainable_variables]
    results = work(lengths, {package: model}, package, "train")
    assert [point["tokens"] for point in results] == LENGTHS
    assert all(len(point["seconds"]) == 2 and min(point["seconds"]) > 0 for point in results)
    for old, new in zip(before, model.lm.trainable_variables, strict=True):
        assert np.any(old != keras.ops.convert_to_numpy(new)), new.path


@pytest.mark.slow
@pytest.mark.parametrize("package", ["keras-rgemma", "Gemma"])
def test_a_batch_writes_as_many_tokens_a_row(lengths, models, package):
    results = work(lengths, models, package, "throughput", lengths=[12], rows=[1, 3])
    assert [(point["rows"], point["tokens"]) for point in results] == [(1, 4), (3, 12)]
    first, last = (point["held_bytes"] for point in results)
    assert 0 < first < last <= 3 * first


def test_a_state_keeps_its_size_and_a_cache_grows(lengths, models):
    ours, theirs = (
        [point["held_bytes"] for point in work(lengths, models, package, "decode", repeats=1)]
        for package in (lengths.OURS, lengths.GEMMA)
    )
    assert ours[0] == ours[1]
    # Keys and values of 3 layers with one head of 32, in float32.
    assert theirs == [2 * 3 * 32 * 4 * (length + 4) for length in LENGTHS]


def test_our_context_is_the_whole_text(lengths, models):
    ours = lengths.Ours(models[lengths.OURS].lm.backbone.config)
    ids = lengths.measure.tokens(ours.vocabulary_size, 1, 40)
    limits = {"max_new_tokens": 4, "stop_token_ids": None}
    expected = ours.lm.generate({"token_ids": ids}, **limits)["token_ids"][0, -4:]
    for context in (9, 40):  # the second goes on from the first
        run, _ = ours.extend(context, 2, 4)
    rows = run()["token_ids"]
    np.testing.assert_array_equal(rows, [expected, expected])


def test_gemma_writes_into_its_cache_as_kerashub_does(lengths, models):
    """From the cache of a prompt the same tokens follow: only what it holds at first differs."""
    gemma = models[lengths.GEMMA]
    ids = lengths.measure.tokens(gemma.vocabulary_size, 2, 9)
    expected = keras.ops.convert_to_numpy(gemma.decode(ids, 6)()["token_ids"])

    class OfThisPrompt(lengths.GemmaOfAContext):
        def first_cache(self, tokens):
            _, _, cache = self.call_with_cache(tokens, super().first_cache(tokens), 0)
            return cache

    lm = OfThisPrompt(gemma.lm.backbone, preprocessor=None)
    lm.compile(sampler="greedy")
    padded = np.pad(ids, ((0, 0), (0, 6)))
    mask = np.pad(np.ones_like(ids), ((0, 0), (0, 6)))
    outputs = lm.generate({"token_ids": padded, "padding_mask": mask}, stop_token_ids=None)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(outputs["token_ids"]), expected)


@backend_independent
@pytest.mark.slow
def test_a_process_ends_at_its_limit_of_memory():
    options = ["keras-rgemma", "decode", "--size", "tiny", "--lengths", "9", "--memory", "0.1"]
    _, report = benchmark_scripts.run("peers/lengths.py", *options)
    assert report["stopped"] is True and report["results"] == []
