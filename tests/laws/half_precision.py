"""Trains the embedded preset in bfloat16, and fails at the first loss or weight that is not finite.

    python tests/laws/half_precision.py 2000
    python tests/laws/half_precision.py 2000 --dtype mixed_bfloat16 --rank 8 --decay_of_one

Every step is one of `fit` on new rows, of random tokens or of one token over and over. Where all
weights are bfloat16 and all are trained, the loss does not keep falling: eight bits lose what a
step adds. It does in mixed_bfloat16 and with LoRA, whose A and B are float32.
"""

import argparse
import pathlib
import sys
import time

sys.path.append(str(pathlib.Path(__file__).parent.parent))

import keras
import numpy as np

import keras_rgemma
import tiny
from keras_rgemma.finetuning import AdamW


class Finite(keras.callbacks.Callback):
    """Raises FloatingPointError once a loss is not finite: so is every mean that it is part of."""

    def on_train_batch_end(self, batch, logs=None):
        if not np.isfinite(logs["loss"]):
            raise FloatingPointError(f"The mean loss is {logs['loss']} after this step.")


def rows(steps, size=2, length=48):
    """`(x, y)` of `fit`: token ids [size * steps, length]; every other row is one word."""
    random = np.random.RandomState(0)
    ids = random.randint(4, 4096, (size * steps, length + 1))
    ids[::2] = ids[::2, :1]
    return {"token_ids": ids[:, :-1], "padding_mask": np.ones_like(ids[:, :-1])}, ids[:, 1:]


def train(steps, dtype="bfloat16", rank=None, decay_of_one=False):
    """The mean losses of the first and the last tenth of the steps.

    With `decay_of_one` every fourth channel of a recurrence begins with a decay a that float32
    cannot tell from 1, where the gradient of sqrt(1 - a^2) has no bound.
    """
    keras.utils.set_random_seed(0)
    lm = keras_rgemma.RGemmaCausalLM.from_preset("rgemma_tiny_en", dtype=dtype)
    for weight in lm.backbone.weights:
        if decay_of_one and weight.path.endswith("a_param"):
            weight.assign(np.where(np.arange(weight.shape[0]) % 4, tiny.numpy(weight), -20))
    if rank:
        lm.backbone.enable_lora(rank)
    lm.compile(AdamW(5e-4), weighted_metrics=[])
    x, y = rows(steps)
    losses = []
    for part in np.array_split(np.arange(2 * steps).reshape(-1, 2), min(10, steps)):
        part = part.ravel()
        parts = {name: value[part] for name, value in x.items()}
        history = lm.fit(
            parts, y[part], batch_size=2, shuffle=False, verbose=0, callbacks=[Finite()]
        )
        losses += history.history["loss"]
    for weight in lm.weights:
        if not np.isfinite(tiny.numpy(weight)).all():
            raise FloatingPointError(f"{weight.path} is not finite.")
    return losses[0], losses[-1]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("steps", type=int)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rank", type=int, help="of LoRA; all weights are trained without it")
    parser.add_argument("--decay_of_one", action="store_true", help="in every fourth channel")
    args = parser.parse_args()
    start = time.perf_counter()
    first, last = train(args.steps, args.dtype, args.rank, args.decay_of_one)
    print(
        f"{keras.config.backend()}: {args.steps} steps in {args.dtype} are finite; "
        f"loss {first:.3f} -> {last:.3f}, {time.perf_counter() - start:.0f} s"
    )


if __name__ == "__main__":
    main()
