"""Runs one measurement in a process of its own, so that its peak memory is its own."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

import keras_rgemma
from keras_rgemma.benchmarks.machine import (
    accelerator_peak_bytes,
    repeat,
    resident_peak_bytes,
    summary,
)
from keras_rgemma.model.causal_lm import RGemmaCausalLM

SIZES = {
    "110m": {
        "vocabulary_size": 32000,
        "num_layers": 12,
        "hidden_dim": 768,
        "intermediate_dim": 2304,
        "num_query_heads": 6,
        "sliding_window_size": 512,
    },
    "tiny": {
        "vocabulary_size": 512,
        "num_layers": 3,
        "hidden_dim": 64,
        "intermediate_dim": 128,
        "num_query_heads": 2,
        "sliding_window_size": 32,
    },
}
# Prompt tokens; new tokens of one decode; rows and tokens of a training step.
WORK = {"110m": (2048, 64, 2, 512), "tiny": (64, 16, 2, 32)}


def tokens(vocabulary_size: int, rows: int, length: int) -> np.ndarray:
    """Makes random token ids [rows, length]."""
    return np.random.RandomState(0).randint(3, vocabulary_size, (rows, length))


def training_batch(
    vocabulary_size: int, rows: int, length: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Makes `(x, y)` of a step on random tokens: a dict of inputs and token ids [rows, length]."""
    ids = tokens(vocabulary_size, rows, length + 1)
    return {"token_ids": ids[:, :-1], "padding_mask": np.ones_like(ids[:, :-1])}, ids[:, 1:]


def measure_prefill(
    model: RGemmaCausalLM, size: str, warmup: int, repeats: int
) -> dict[str, float]:
    """Measures the tokens a second of reading one prompt into a state, without logits."""
    length = WORK[size][0]
    prompt = list(tokens(model.backbone.vocabulary_size, 1, length))
    programs = model.make_generate_function()

    def run() -> None:
        _, state = programs.prefill(prompt, model.initial_state(1))
        keras.ops.convert_to_numpy(state.num_tokens)

    return summary(length, repeat(run, warmup, repeats))


def measure_decode(
    model: RGemmaCausalLM, size: str, warmup: int, repeats: int, batch_size: int
) -> dict[str, float]:
    """Measures the tokens a second of `generate`, all rows together, after prompts of 16 tokens."""
    count = WORK[size][1]
    prompts = {"token_ids": tokens(model.backbone.vocabulary_size, batch_size, 16)}

    def run() -> None:
        model.generate(prompts, max_new_tokens=count, stop_token_ids=None)

    return summary(batch_size * count, repeat(run, warmup, repeats))


def measure_stream(model: RGemmaCausalLM, size: str, warmup: int, repeats: int) -> dict[str, float]:
    """Measures the tokens a second of `stream` after a prompt, and the waits between tokens."""
    length, count, _, _ = WORK[size]
    prompt = {"token_ids": tokens(model.backbone.vocabulary_size, 1, length)}
    first, between = [], []

    def run() -> None:
        times = [time.perf_counter()]
        for _ in model.stream(prompt, max_new_tokens=count, stop_token_ids=None):
            times.append(time.perf_counter())
        waits = np.diff(times)
        first.append(waits[0])
        between.append(np.median(waits[1:]))

    return {
        **summary(count, repeat(run, warmup, repeats)),
        "first_piece_ms": 1e3 * float(np.median(first[warmup:])),
        "between_pieces_ms": 1e3 * float(np.median(between[warmup:])),
    }


def measure_train(model: RGemmaCausalLM, size: str, warmup: int, repeats: int) -> dict[str, float]:
    """Measures the tokens a second of one step of `fit` with Adam."""
    _, _, rows, length = WORK[size]
    batch = training_batch(model.backbone.vocabulary_size, rows, length)
    model.compile(optimizer="adam")
    return summary(rows * length, repeat(lambda: model.train_on_batch(*batch), warmup, repeats))


MEASURES: dict[str, Callable[..., dict[str, Any]]] = {
    "prefill": measure_prefill,
    "decode B1": lambda *args: measure_decode(*args, batch_size=1),
    "decode B8": lambda *args: measure_decode(*args, batch_size=8),
    "stream": measure_stream,
    "train": measure_train,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=MEASURES)
    parser.add_argument("--size", choices=SIZES, default="110m")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    keras.utils.set_random_seed(0)
    backbone = keras_rgemma.RGemmaBackbone(**SIZES[args.size], dtype=args.dtype)
    model = keras_rgemma.RGemmaCausalLM(backbone)
    result = MEASURES[args.what](model, args.size, args.warmup, args.repeats)
    result["parameters"] = backbone.count_params()
    if args.what == "prefill":  # which looks embeddings up, but makes no logits
        result["parameters"] -= backbone.token_embedding.count_params()
    peak = accelerator_peak_bytes(keras.config.backend())
    result["peak_memory_bytes"] = peak or resident_peak_bytes()
    result["on_host"] = not peak
    print(json.dumps(result))


if __name__ == "__main__":
    main()
