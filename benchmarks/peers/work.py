"""Times the same work on any model: the end of each script in this folder.

A script makes a model, whose methods return functions that do the work once; this file calls them
and prints the seconds as JSON, in the last line.
"""

import argparse
import functools
import gc
import json
import statistics
import time

from keras_rgemma.benchmarks import measure as measure_alone
from keras_rgemma.benchmarks.machine import repeat, reset_peak, resident_bytes

WORK = {**measure_alone.WORK, "2b": (512, 16, 1, 512)}
PROMPT = 16  # tokens before the new ones
MEASURES = ("prefill", "decode B1", "decode B8", "train")


def arguments(description):
    """Reads the command line of a script."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("folder", help="a checkpoint of Hugging Face, with random weights")
    parser.add_argument("--size", choices=WORK, required=True)
    parser.add_argument("--dtype", default="float32", help="float32 or bfloat16")
    parser.add_argument("--quantize", help="int8 or int4, of our own model alone")
    parser.add_argument("--measures", nargs="+", choices=MEASURES, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


def measure(make, args):
    """Makes a model, does each kind of work, and prints the seconds.

    Args:
        make: callable of `args` that returns a model with `vocabulary_size`, `parameters`, and the
            methods `prefill(ids)`, `decode(ids, new_tokens)` and `train(ids)`.
        args: as of `arguments`.
    """
    before = resident_bytes("VmRSS")
    reset_peak()
    start = time.perf_counter()
    model = make(args)
    result = {"load_s": time.perf_counter() - start, "parameters": model.parameters}
    for name in args.measures:
        work, tokens = _work(model, name, WORK[args.size])
        start = time.perf_counter()
        work()
        first = time.perf_counter() - start
        seconds = repeat(work, 0, args.repeats)
        result[name] = {"first_s": first, "tokens_per_s": tokens / statistics.median(seconds)}
        del work
        gc.collect()
    result["peak_bytes"] = resident_bytes("VmHWM") - before
    print(json.dumps(result))


def _work(model, name, sizes):
    """Returns a function that does one kind of work, and the number of its tokens."""
    prompt, new_tokens, rows, length = sizes

    ids = functools.partial(measure_alone.tokens, model.vocabulary_size)

    if name == "prefill":
        return model.prefill(ids(1, prompt)), prompt
    if name == "train":
        return model.train(ids(rows, length + 1)), rows * length
    rows = int(name.removeprefix("decode B"))
    return model.decode(ids(rows, PROMPT), new_tokens), rows * new_tokens
