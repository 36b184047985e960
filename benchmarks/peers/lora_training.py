"""Tokens a second of training with LoRA, on each backend and with Hugging Face's PEFT.

    python benchmarks/peers/lora_training.py
    python benchmarks/peers/lora_training.py --size tiny --rounds 1 --steps 1

All train the same adapter (A, B and targets, the gates included) of the same random float32 model
on the same rows (transformers reads their last tokens, too, of which it predicts nothing: 0.2%
more). Each is measured in a process of its own, one after another in every round; the
ratio is the median over the rounds, with the lowest and the highest. Needs transformers and peft.
The last line is the same as JSON.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import tempfile

import keras
import numpy as np

import keras_rgemma
from keras_rgemma.backend import BACKENDS
from keras_rgemma.benchmarks.machine import in_child, repeat, resident_peak_bytes, versions
from keras_rgemma.benchmarks.measure import SIZES, WORK, training_batch
from keras_rgemma.finetuning import AdamW

PEFT = "PEFT"
LEARNING_RATE = 1e-3
# The adapter stands beside the base.
BASE, ADAPTER = "base", "adapter"


def prepare(folder, size, rank):
    """Writes a random model for transformers, and an adapter of it."""
    keras.utils.set_random_seed(0)
    lm = keras_rgemma.RGemmaCausalLM(keras_rgemma.RGemmaBackbone(**SIZES[size]))
    lm.backbone.enable_lora(rank)
    lm.export_to_transformers(folder / BASE)
    lm.export_to_peft(folder / ADAPTER, base_model=str(folder / BASE))


def batch_of(vocabulary_size, size):
    """`(x, y)` of the step that all of them train."""
    _, _, rows, length = WORK[size]
    return training_batch(vocabulary_size, rows, length)


def step_of_keras(folder, size):
    """A function that trains on the rows once and returns the loss, and the number of tokens."""
    lm = keras_rgemma.RGemmaCausalLM.from_preset(folder / BASE, preprocessor=None)
    lm.load_from_peft(folder / ADAPTER)
    lm.compile(AdamW(LEARNING_RATE), weighted_metrics=[])
    x, y = batch_of(lm.backbone.vocabulary_size, size)
    return lambda: float(lm.train_on_batch(x, y)), y.size


def step_of_peft(folder, size):
    """The same with transformers and PEFT, as their own examples train."""
    import peft
    import torch
    import transformers

    base = transformers.AutoModelForCausalLM.from_pretrained(folder / BASE)
    model = peft.PeftModel.from_pretrained(base, folder / ADAPTER, is_trainable=True).train()
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, LEARNING_RATE, weight_decay=0.01)
    x, y = batch_of(base.config.vocab_size, size)
    # It takes each token's label from the next one itself.
    ids = torch.tensor(np.concatenate([x["token_ids"], y[:, -1:]], axis=1))

    layers = [module for module in model.modules() if hasattr(module, "_rnn_scan")]

    def step():
        for layer in layers:
            # transformers forgets the state before a batch, but of PEFT's wrapper of the gates: it
            # would go on from the graph of the step before, which is gone.
            layer.recurrent_states = None
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        return float(loss)

    return step, y.size


def measure(folder, size, steps, is_peft):
    """What one of them needs, as a dict."""
    step, tokens = (step_of_peft if is_peft else step_of_keras)(folder, size)
    losses = []
    seconds = repeat(lambda: losses.append(step()), 1, steps)
    rate = tokens / statistics.median(seconds)
    return {"tokens_per_s": rate, "losses": losses, "peak_bytes": resident_peak_bytes()}


COLUMNS = "{:<12}{:>10}{:>8}{:>18}{:>9}{:>10}{:>10}"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=("110m", "tiny"), default="110m")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--peft", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.folder:
        folder = pathlib.Path(args.folder)
        print(json.dumps(measure(folder, args.size, args.steps, args.peft)))
        return
    print(f"cpus {os.cpu_count()}, rank {args.rank}, {args.size}, versions {versions()}\n")
    results = {name: [] for name in (PEFT, *args.backends)}
    with tempfile.TemporaryDirectory() as folder:
        prepare(pathlib.Path(folder), args.size, args.rank)
        arguments = ["--folder", folder, "--size", args.size, "--steps", args.steps]
        for _ in range(args.rounds):
            for name, found in results.items():
                is_peft = ["--peft"] if name == PEFT else []
                backend = "torch" if is_peft else name
                found.append(in_child(backend, __file__, *arguments, *is_peft))
                if "error" in found[-1]:
                    sys.exit(f"{name}: {found[-1]['error']}")
    print(COLUMNS.format("", "tokens/s", "ratio", "(low, high)", "peak MB", "loss 1", "loss 2"))
    for name, found in results.items():
        print(_row(name, found, results[PEFT]))
    print("\n" + json.dumps(results))


def _row(name, found, others):
    ratios = [x["tokens_per_s"] / y["tokens_per_s"] for x, y in zip(found, others, strict=True)]
    return COLUMNS.format(
        name,
        f"{statistics.median(x['tokens_per_s'] for x in found):.0f}",
        f"{statistics.median(ratios):.2f}",
        f"({min(ratios):.2f}, {max(ratios):.2f})",
        f"{max(x['peak_bytes'] for x in found) / 1e6:.0f}",
        *(f"{loss:.4f}" for loss in found[0]["losses"][:2]),
    )


if __name__ == "__main__":
    main()
