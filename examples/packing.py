"""Learns from short conversations, several packed into each row.

    python examples/packing.py
    python examples/packing.py --preset rgemma_instruct_2b_en --dtype bfloat16 --batch_size 1

No conversation sees another in its row: `padding_mask` counts them. It prints how many positions
the rows have, packed and not, the seconds of an epoch, and the loss on questions that were held
out, before and after.
"""

import time

import keras
import python_questions

import keras_rgemma
from keras_rgemma.finetuning import AdamW


def main():
    args = python_questions.parser(__doc__, learning_rate=3e-3).parse_args()
    keras.utils.set_random_seed(0)  # of A, and of the order of examples

    learned, held_out = python_questions.conversations()
    learned = learned[: args.examples]
    lm = keras_rgemma.RGemmaCausalLM.from_preset(args.preset, dtype=args.dtype)
    lm.preprocessor.sequence_length = 256
    for packing in (False, True):
        lm.preprocessor.packing = packing
        x, _, _ = lm.preprocessor(learned)
        share = (x["padding_mask"] > 0).mean()
        name = "packed" if packing else "one a row"
        print(f"{name}: {x['padding_mask'].size:,} positions, {share:.0%} of them with a token")
    before = python_questions.report(lm, held_out, "before", args.batch_size)

    lm.backbone.enable_lora(8)
    lm.compile(AdamW(args.learning_rate))
    start = time.perf_counter()
    lm.fit(learned, epochs=args.epochs, batch_size=args.batch_size)
    seconds = (time.perf_counter() - start) / args.epochs
    after = python_questions.report(lm, held_out, "after", args.batch_size)
    print(f"{seconds:.1f} s an epoch; held-out loss {before:.3f} -> {after:.3f}")


if __name__ == "__main__":
    main()
