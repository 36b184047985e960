"""Measures one checkout of the project through its public API: the child of before_after.py.

    PYTHONPATH=CHECKOUT python benchmarks/measures.py "decode B1" --sizes '{...}' --work 64 2 512

The same file measures both checkouts. The last line is the result as JSON.
"""

import argparse
import json
import pathlib
import runpy
import statistics
import time

import keras
import numpy as np

import keras_rgemma

PRESET = "rgemma_tiny_en"
PROMPT = "In the beginning"
RANK = 8
# The mix of requests is the one of the checkout that compares, for both.
COMPILES = pathlib.Path(__file__).parents[1] / "keras_rgemma" / "benchmarks" / "compiles.py"


def timed(function, repeats, per=1):
    """Times the first call of a function, and the median of later ones.

    Args:
        function: callable without arguments.
        repeats: int, the number of later calls.
        per: int, the number of units, such as tokens, in a call.

    Returns:
        Tuple of the milliseconds of a unit, and the seconds of the first call.
    """
    seconds = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds[1:]) / per, seconds[0]


def model_of(args):
    """Makes a model of the given sizes, with random float32 weights and no preprocessor."""
    keras.utils.set_random_seed(0)
    return keras_rgemma.RGemmaCausalLM(keras_rgemma.RGemmaBackbone(**args.sizes))


def token_ids(args, rows, length):
    """Makes random token ids [rows, length]."""
    return np.random.RandomState(0).randint(3, args.sizes["vocabulary_size"], (rows, length))


def decode(args, rows):
    """Times a new token of `generate` after prompts of 16 tokens."""
    lm, prompts = model_of(args), {"token_ids": token_ids(args, rows, 16)}
    limits = {"max_new_tokens": args.work[0], "stop_token_ids": None}
    token, first = timed(lambda: lm.generate(prompts, **limits), args.repeats, args.work[0])
    return {"ms a token": token, "first call s": first}


def stream(args):
    """Times a new token of `stream` and of `generate` after the same prompt."""
    lm, prompt = model_of(args), {"token_ids": token_ids(args, 1, 16)}
    limits = {"max_new_tokens": args.work[0], "stop_token_ids": None}
    whole, _ = timed(lambda: lm.generate(prompt, **limits), args.repeats, args.work[0])
    token, _ = timed(lambda: [*lm.stream(prompt, **limits)], args.repeats, args.work[0])
    return {"ms a token": token, "of generate": token / whole}


def preset(args, prepare=lambda lm: None):
    """Times a new token of `generate` with the preset that ships in the package.

    Args:
        args: the parsed arguments.
        prepare: callable that changes the model before it generates.
    """
    lm = keras_rgemma.RGemmaCausalLM.from_preset(PRESET)
    prepare(lm)
    count = args.preset_tokens
    limits = {"max_new_tokens": count, "stop_token_ids": None}
    token, first = timed(lambda: lm.generate(PROMPT, **limits), args.repeats, count)
    return {"ms a token": token, "first call s": first}


def add_random_lora(lm):
    """Enables LoRA on a model, with random values in B, which starts as zeros."""
    lm.backbone.enable_lora(RANK)
    random = np.random.RandomState(0)
    for weight in lm.trainable_variables:
        if not np.any(keras.ops.convert_to_numpy(weight)):
            weight.assign(random.normal(0, 0.02, weight.shape).astype("float32"))


def training_rows(args, rows):
    """Makes random inputs and labels of `rows` rows."""
    ids = token_ids(args, rows, args.work[2] + 1)
    return {"token_ids": ids[:, :-1], "padding_mask": np.ones_like(ids[:, :-1])}, ids[:, 1:]


def train_step(args):
    """Times `train_on_batch` with Adam."""
    lm, batch = model_of(args), training_rows(args, args.work[1])
    lm.compile(optimizer="adam")
    step, first = timed(lambda: lm.train_on_batch(*batch), args.repeats)
    return {"ms a step": step, "first call s": first}


def fit(args):
    """Times `fit` with Adam on four batches."""
    lm, rows = model_of(args), args.work[1]
    x, y = training_rows(args, 4 * rows)
    lm.compile(optimizer="adam")
    step, first = timed(lambda: lm.fit(x, y, batch_size=rows, verbose=0), args.repeats, 4)
    return {"ms a step": step, "first call s": first}


def compiles(args):
    """Counts the programs that are compiled for a mix of prompts, limits and stop ids."""
    mix = runpy.run_path(str(COMPILES))
    start = time.perf_counter()
    count = mix["count"](args.requests, stop_sets=mix["STOP_SETS"])
    return {"programs": count, "all requests s": time.perf_counter() - start}


MEASURES = {
    "decode B1": lambda args: decode(args, 1),
    "decode B8": lambda args: decode(args, 8),
    "preset": preset,
    "preset LoRA": lambda args: preset(args, add_random_lora),
    "preset int8": lambda args: preset(args, lambda lm: lm.quantize("int8")),
    "stream": stream,
    "train step": train_step,
    "fit": fit,
    "compiles": compiles,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("measure", choices=MEASURES)
    parser.add_argument("--sizes", type=json.loads, help="the arguments of RGemmaBackbone, as JSON")
    parser.add_argument(
        "--work", type=int, nargs=3, help="new tokens of a decode, rows and tokens of a step"
    )
    parser.add_argument("--preset-tokens", type=int, default=100)
    parser.add_argument("--requests", type=int, default=200, help="of the mix of `compiles`")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    numbers = MEASURES[args.measure](args)
    print(json.dumps({"file": keras_rgemma.__file__, "numbers": numbers}))


if __name__ == "__main__":
    main()
