"""Measures one model on a GPU, on the backend of KERAS_BACKEND; see ../gpu.py.

    python benchmarks/peers/on_gpu.py ours decode rgemma_2b_en --rows 1 64

Prints a line of JSON for each number as soon as it has it, so that what is measured is told even if
the process runs out of memory or time later.
"""

import argparse
import dataclasses
import functools
import json
import math
import statistics
import sys
import time

import keras
import kerashub_gemma
import numpy as np
import ours

import keras_rgemma
from keras_rgemma.benchmarks.load import architecture
from keras_rgemma.benchmarks.machine import accelerator_peak_bytes, repeat

PROMPT = 16  # tokens before the new ones, where their speed alone is measured
CONTEXT = 4096  # where the whole of a request is


def make(package, preset, dtype):
    """Makes a model with random weights on the GPU, as the other files here wrap it."""
    config = architecture(preset)
    keras.utils.set_random_seed(0)
    if package == "gemma":
        return ours.KerasModel(kerashub_gemma.gemma(config, dtype))
    backbone = keras_rgemma.RGemmaBackbone(**dataclasses.asdict(config), dtype=dtype)
    return ours.Ours(keras_rgemma.RGemmaCausalLM(backbone, preprocessor=None))


def token_ids(rows, length):
    """Makes random token ids [rows, length]."""
    return np.random.RandomState(0).randint(3, 4000, (rows, length))


def median_of(function, repeats):
    """Returns the seconds of the first call and the median of others."""
    start = time.perf_counter()
    function()
    first = time.perf_counter() - start
    return first, statistics.median(repeat(function, 0, repeats))


def decode(model, args, rows):
    """Measures the time of a token from two lengths of generation."""
    short, long = args.new_tokens // 4, args.new_tokens
    ids = token_ids(rows, PROMPT)
    first, less = median_of(model.decode(ids, short), args.repeats)
    _, more = median_of(model.decode(ids, long), args.repeats)
    seconds = (more - less) / (long - short)
    return {"first_s": first, "ms_per_step": 1e3 * seconds, "tokens_per_s": rows / seconds}


def request(model, args, rows):
    """Measures requests of 4,096 tokens that get new ones, all rows together."""
    run = model.decode(token_ids(rows, CONTEXT), args.new_tokens)
    first, seconds = median_of(run, 1)
    return {"first_s": first, "seconds": seconds, "tokens_per_s": rows * args.new_tokens / seconds}


def context(model, args, length):
    """Measures the time of a token after a context that the state has read."""
    lm, ids = model.lm, token_ids(1, length)
    first, seconds = median_of(lambda: keras.ops.convert_to_numpy(_read(lm, ids)), 1)
    state = lm.prefill({"token_ids": ids})
    times = []
    for count in (args.new_tokens // 4, args.new_tokens):
        limits = {"max_new_tokens": count, "stop_token_ids": None}
        run = functools.partial(lm.generate, {"token_ids": ids[:, :1]}, state=state, **limits)
        times.append(median_of(run, args.repeats)[1])
    step = (times[1] - times[0]) / (args.new_tokens - args.new_tokens // 4)
    rate = length / seconds
    return {"first_s": first, "prefill_tokens_per_s": rate, "ms_per_step": 1e3 * step}


def _read(lm, ids):
    programs = lm.make_generate_function()
    return programs.prefill(list(ids), lm.initial_state(1))[1].num_tokens


def train(model, args, rows):
    """Measures a step of LoRA on rows of 4,096 tokens."""
    model.lm.backbone.enable_lora(8)
    run = model.train(token_ids(rows, CONTEXT + 1))
    first, seconds = median_of(run, args.repeats)
    return {"first_s": first, "seconds": seconds, "tokens_per_s": rows * CONTEXT / seconds}


MEASURES = {"decode": decode, "request": request, "context": context, "train": train}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", choices=("ours", "gemma"))
    parser.add_argument("measure", choices=MEASURES)
    parser.add_argument("preset")
    parser.add_argument("--rows", type=int, nargs="+", default=[1], help="or lengths of a context")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--quantize", help="int8 or int4")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compile", nargs="*", default=[], help="options set to True")
    parser.add_argument("--implementation", nargs="*", default=[], help="OPERATION=NAME")
    args = parser.parse_args()
    keras_rgemma.set_implementation(**dict(x.split("=") for x in args.implementation))
    start = time.perf_counter()
    model = make(args.package, args.preset, args.dtype)
    if args.quantize:
        model.lm.quantize(args.quantize)
    model.lm.compile(sampler="greedy", **dict.fromkeys(args.compile, True))
    size = sum(_bytes(variable) for variable in model.lm.variables)
    shared = {"weight_bytes": size, "make_s": time.perf_counter() - start}
    shared |= {"backend": keras.config.backend(), "command": " ".join(sys.argv[1:])}
    shared |= {name: getattr(args, name) for name in ("package", "measure", "preset")}
    shared |= {name: getattr(args, name) for name in ("compile", "implementation")}
    for rows in args.rows:
        try:
            result = MEASURES[args.measure](model, args, rows)
        except Exception as error:  # out of memory, on either backend
            result = {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"}
        result["peak_bytes"] = accelerator_peak_bytes(keras.config.backend())
        print(json.dumps({"rows": rows, **result, **shared}), flush=True)


def _bytes(variable):
    """Returns the bytes of a variable."""
    return math.prod(variable.shape) * keras.ops.convert_to_tensor(variable).dtype.itemsize


if __name__ == "__main__":
    main()
