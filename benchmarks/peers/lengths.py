"""Times work of growing length with our model or KerasHub's Gemma: the child of two scripts.

    KERAS_BACKEND=jax python benchmarks/peers/lengths.py keras-rgemma decode --lengths 1000 10000

Runs for length.py and latency.py on the backend of KERAS_BACKEND. The last line is JSON: the number
of `parameters`, a dict for each of the `results`, and in `stopped` whether the process ended
because it held more memory than `--memory` gigabytes, at the last `length` and `rows`.
"""

import argparse
import dataclasses
import gc
import json
import math

import keras
import keras_hub
import kerashub_gemma
import numpy as np
import ours
from keras import ops

import keras_rgemma
from keras_rgemma.benchmarks import measure
from keras_rgemma.benchmarks.machine import end_above, repeat, reset_peak, resident_bytes
from keras_rgemma.config import RGemmaConfig

OURS, GEMMA = "keras-rgemma", "Gemma"
MEASURES = ("decode", "prefill", "train", "latency", "throughput")
# The smaller one for steps that would take hours at 110m. Both have the window of 512.
SIZES = {
    **measure.SIZES,
    "8m": {
        "vocabulary_size": 8000,
        "num_layers": 6,
        "hidden_dim": 256,
        "intermediate_dim": 768,
        "num_query_heads": 2,
        "sliding_window_size": 512,
    },
}
PATIENCE = 5  # seconds of calls, after which none is repeated

_GEMMA_READS = 2**18  # tokens of the cache that one call of Gemma attends to, or 8 new tokens


class Ours(ours.Ours):
    """Makes our model, and the functions that work with it.

    Args:
        config: `RGemmaConfig`.
    """

    def __init__(self, config):
        backbone = keras_rgemma.RGemmaBackbone(**dataclasses.asdict(config))
        super().__init__(keras_rgemma.RGemmaCausalLM(backbone))
        self._states = {}

    def write(self, ids, new_tokens):
        """Returns functions that compile `decode(ids, new_tokens)` and that run it."""
        return self.decode(ids, 1), self.decode(ids, new_tokens)

    def extend(self, context, rows, new_tokens):
        """Reads a context, each token of it once for contexts of increasing length.

        Returns:
            A function that adds new tokens to as many copies of the context as there are rows, and
            the bytes that these rows hold.
        """
        ids = measure.tokens(self.vocabulary_size, 1, context)
        read = max((x for x in self._states if x <= context), default=0)
        if read < context:
            self._states[context] = self.lm.prefill(ids[:, read:], state=self._states.get(read))
        state = self._states[context].repeat(rows)
        nothing = {"token_ids": np.zeros((rows, 0), "int32")}
        limits = {"max_new_tokens": new_tokens, "stop_token_ids": None}
        return lambda: self.lm.generate(nothing, state=state, **limits), state.nbytes


class GemmaOfAContext(keras_hub.models.GemmaCausalLM):
    """Generates as KerasHub's Gemma does, but from a cache that no prompt was read into.

    The cache holds ones: what a step costs depends on its size, and reading a prompt into a cache
    of 100,000 tokens takes the square of that.
    """

    def generate_step(self, inputs, stop_token_ids=None):
        """Writes tokens behind the prompts of a batch: see `GemmaCausalLM.generate_step`."""
        tokens, mask = inputs["token_ids"], inputs["padding_mask"]

        def next(prompt, cache, index):
            token = ops.slice(prompt, [0, index - 1], [ops.shape(prompt)[0], 1])
            logits, hidden, cache = self.call_with_cache(token, cache, index - 1)
            return ops.squeeze(logits, axis=1), ops.squeeze(hidden, axis=1), cache

        tokens = self.sampler(
            next=next,
            prompt=tokens,
            cache=self.first_cache(tokens),
            index=ops.min(ops.sum(ops.cast(mask, "int32"), axis=-1)),
            mask=mask,
            stop_token_ids=stop_token_ids,
            model=self,
        )
        return {"token_ids": tokens, "padding_mask": ops.ones_like(tokens, dtype="bool")}

    def first_cache(self, tokens):
        """Returns the cache before the first new token."""
        return ops.ones(self.cache_shape(*ops.shape(tokens)), dtype=self.compute_dtype)

    def cache_shape(self, rows, length):
        """Returns the shape of the keys and values of all layers."""
        sizes = self.backbone
        return (rows, sizes.num_layers, 2, length, sizes.num_key_value_heads, sizes.head_dim)


class Gemma(ours.KerasModel):
    """Makes KerasHub's Gemma, and the functions that work with it, as `Ours`.

    Args:
        config: `RGemmaConfig`.
    """

    def __init__(self, config):
        super().__init__(kerashub_gemma.gemma(config, "float32"))
        self.of_a_context = GemmaOfAContext(self.lm.backbone, preprocessor=None)
        self.of_a_context.compile(sampler="greedy")

    def write(self, ids, new_tokens):
        """Returns functions that compile `decode(ids, new_tokens)` and that run it.

        The first writes the last of these tokens alone: the program is the same.
        """
        run = self.decode(ids, new_tokens)
        all_ids = np.pad(ids, ((0, 0), (0, new_tokens)))
        mask = np.broadcast_to(np.arange(all_ids.shape[1]) < all_ids.shape[1] - 1, all_ids.shape)
        inputs = {"token_ids": all_ids, "padding_mask": mask.astype(ids.dtype)}
        return lambda: self.lm.generate(inputs, stop_token_ids=None), run

    def extend(self, context, rows, new_tokens):
        """Makes a context; see `Ours.extend`."""
        length = context + new_tokens
        ids = measure.tokens(self.vocabulary_size, rows, length)
        mask = np.broadcast_to(np.arange(length) < context, ids.shape)
        inputs = {"token_ids": ids, "padding_mask": mask.astype("int32")}
        nbytes = 4 * math.prod(self.of_a_context.cache_shape(rows, length))
        generate = self.of_a_context.generate
        return lambda: generate(inputs, stop_token_ids=None), nbytes


def points(model, args, report):
    """Does the work at each length.

    Args:
        model: `Ours` or `Gemma`.
        args: the parsed arguments.
        report: dict, whose "results" get a dict for each length, with the tokens of a call and the
            seconds of each, and whose "length" and "rows" are those at work.
    """
    before, again = report["imports_bytes"], []
    for rows, length in [(rows, length) for rows in args.rows for length in args.lengths]:
        report["length"], report["rows"] = length, rows
        warm, run, tokens, held = work(model, args, rows, length)
        warm()
        gc.collect()
        reset_peak()
        seconds = repeat(run, 0, 1)
        report["results"].append(
            {
                **{"length": length, "rows": rows, "tokens": tokens, "held_bytes": held},
                **{"seconds": seconds, "peak_bytes": resident_bytes("VmHWM") - before},
            }
        )
        if args.measure == "decode" and args.package == OURS:
            again.append((run, seconds))
        while len(seconds) < args.repeats and sum(seconds) < PATIENCE:
            seconds += repeat(run, 0, 1)
    # A machine changes its speed while long contexts are read: what is compared stands together.
    for _ in range(args.repeats if again else 0):
        for run, seconds in again:
            seconds += repeat(run, 0, 1)
    for _, seconds in again:
        del seconds[: -args.repeats]


def work(model, args, rows, length):
    """Makes the work at one length.

    Returns:
        A function that compiles the work, another that does it, the number of its tokens, and the
        bytes that the rows hold of their contexts, or None.
    """
    if args.measure in ("decode", "throughput"):
        new = min(args.new_tokens, length)
        if args.package == GEMMA:  # each takes longer the longer the context is
            new = min(new, max(8, _GEMMA_READS // length))
        # The tokens before the first new one.
        context = length if args.measure == "decode" else args.prompt + length - new
        run, held = model.extend(context, rows, new)
        return run, run, rows * new, held
    if args.measure == "latency":
        prompt = measure.tokens(model.vocabulary_size, rows, args.prompt)
        return *model.write(prompt, length), rows * length, None
    if args.measure == "prefill":
        run = model.decode(measure.tokens(model.vocabulary_size, rows, length), 1)
    else:
        run = model.train(measure.tokens(model.vocabulary_size, rows, length + 1))
    return run, run, rows * length, None


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", choices=(OURS, GEMMA))
    parser.add_argument("measure", choices=MEASURES)
    parser.add_argument("--size", choices=SIZES, default="110m")
    parser.add_argument("--lengths", type=int, nargs="+", required=True)
    parser.add_argument("--rows", type=int, nargs="+", default=[1])
    parser.add_argument("--prompt", type=int, default=0, help="tokens before those of the length")
    parser.add_argument("--new-tokens", type=int, default=64, help="of one call")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", type=float, default=8, help="gigabytes of the process")
    args = parser.parse_args()
    __import__(keras.config.backend())
    report = {"results": [], "stopped": False, "length": None, "rows": None}
    report["imports_bytes"] = resident_bytes("VmRSS")
    end_above(args.memory * 1e9, lambda: {**report, "stopped": True})
    keras.utils.set_random_seed(0)
    config = RGemmaConfig(**SIZES[args.size], gradient_checkpointing=args.measure == "train")
    model = (Ours if args.package == OURS else Gemma)(config)
    report["parameters"] = model.parameters
    points(model, args, report)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
