"""Teaches a preset to tell what Python's functions do, with LoRA.

    python examples/lora.py
    python examples/lora.py --preset rgemma_instruct_2b_en --dtype bfloat16 --batch_size 1

It prints the loss on questions that were held out and two answers, before and after, and writes an
adapter file, which goes into a fresh model again.
"""

import keras
import python_questions

import keras_rgemma
from keras_rgemma.finetuning import AdamW


def main():
    parser = python_questions.parser(__doc__, learning_rate=3e-3)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--out", default="python.lora.h5")
    args = parser.parse_args()
    keras.utils.set_random_seed(0)  # of A, and of the order of examples

    learned, held_out = python_questions.conversations()
    lm = keras_rgemma.RGemmaCausalLM.from_preset(args.preset, dtype=args.dtype)
    lm.preprocessor.sequence_length = 128
    before = python_questions.report(lm, held_out, "before", args.batch_size)

    lm.backbone.enable_lora(args.rank)
    lm.compile(AdamW(args.learning_rate))
    lm.summary(line_length=80)
    lm.fit(learned[: args.examples], epochs=args.epochs, batch_size=args.batch_size)
    lm.backbone.save_lora_weights(args.out)

    fresh = keras_rgemma.RGemmaCausalLM.from_preset(args.preset, dtype=args.dtype)
    fresh.preprocessor.sequence_length = 128
    fresh.backbone.load_lora_weights(args.out)
    after = python_questions.report(fresh, held_out, "after", args.batch_size)
    print(f"held-out loss {before:.3f} -> {after:.3f}; the adapter is {args.out}")


if __name__ == "__main__":
    main()
