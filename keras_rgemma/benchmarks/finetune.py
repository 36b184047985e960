"""Measures memory and time of a training step with LoRA, on each backend.

    python -m keras_rgemma.benchmarks.finetune --preset rgemma_2b_en --folder big/2b
    python -m keras_rgemma.benchmarks.finetune --lengths 512 --backends torch --steps 3

Random bfloat16 weights are written into the folder in the published layout of Hugging Face, unless
the folder exists. Every step is measured in a process of its own: with all logits at a time, with
the default loss, which makes the logits of some tokens at a time, and with activations that are
recomputed in the backward pass as well. The peak is the memory of the process during the steps,
weights included, less its memory after its imports. The last line is the same as JSON.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
from collections.abc import Mapping
from typing import Any

import keras

import keras_rgemma
from keras_rgemma.benchmarks.load import architecture, options, write_random
from keras_rgemma.benchmarks.machine import (
    in_child,
    repeat,
    reset_peak,
    resident_bytes,
    versions,
)
from keras_rgemma.benchmarks.measure import training_batch
from keras_rgemma.finetuning import AdamW
from keras_rgemma.types import StrPath

# Whether activations are recomputed, and whether the default loss is used.
VARIANTS = {
    "all logits": (False, False),
    "default loss": (False, True),
    "and recomputed": (True, True),
}


def measure(folder: StrPath, variant: str, length: int, rank: int, steps: int) -> dict[str, Any]:
    """Measures the time and memory of steps on one row of `length` tokens, as a dict."""
    __import__(keras.config.backend())
    before = resident_bytes("VmRSS")
    recomputes, has_default_loss = VARIANTS[variant]
    backbone = keras_rgemma.RGemmaBackbone.from_preset(
        folder, dtype="bfloat16", gradient_checkpointing=recomputes
    )
    lm = keras_rgemma.RGemmaCausalLM(backbone)
    backbone.enable_lora(rank)
    loss = "auto" if has_default_loss else keras.losses.SparseCategoricalCrossentropy(True)
    lm.compile(AdamW(1e-3), loss, weighted_metrics=[])
    x, y = training_batch(backbone.vocabulary_size, 1, length)
    losses = []
    reset_peak()
    seconds = repeat(lambda: losses.append(float(lm.train_on_batch(x, y))), 1, steps)
    return {
        "losses": losses,
        "seconds": statistics.median(seconds),
        "peak_bytes": resident_bytes("VmHWM") - before,
        "model_bytes": 2 * backbone.config.parameter_count,
    }


COLUMNS = "{:<11}{:<16}{:>7}{:>9}{:>10}{:>9}{:>9}{:>9}"


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--lengths", nargs="+", type=int, default=[128, 256, 512])
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.variant:
        (length,) = args.lengths
        print(json.dumps(measure(args.folder, args.variant, length, args.rank, args.steps)))
        return
    if not pathlib.Path(args.folder).exists():
        write_random(args.folder, architecture(args.preset))
    print(f"cpus {os.cpu_count()}, rank {args.rank}, one row, versions {versions()}\n")
    names = ("backend", "variant", "tokens", "seconds", "model GB", "peak GB", "loss 1", "loss 2")
    print(COLUMNS.format(*names))
    results = []
    for backend in args.backends:
        for length in args.lengths:
            for variant in VARIANTS:
                result = {"backend": backend, "variant": variant, "tokens": length}
                arguments = ["--folder", args.folder, "--variant", variant, "--lengths", length]
                arguments += ["--rank", args.rank, "--steps", args.steps]
                results.append(result | in_child(backend, __spec__.name, *arguments))
                print(_row(results[-1]), flush=True)
    print("\n" + json.dumps(results))
    sys.exit(any("error" in result for result in results))


def _row(result: Mapping[str, Any]) -> str:
    """Writes the line of a result in the table."""
    first = (result["backend"], result["variant"], result["tokens"])
    if "error" in result:
        return f"{first[0]:<11}{first[1]:<16}{first[2]:>7} {result['error']}"
    return COLUMNS.format(
        *first,
        f"{result['seconds']:.1f}",
        *(f"{result[name] / 1e9:.2f}" for name in ("model_bytes", "peak_bytes")),
        *(f"{loss:.4f}" for loss in result["losses"][:2]),
    )


if __name__ == "__main__":
    main()
