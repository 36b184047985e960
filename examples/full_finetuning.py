"""Teaches a preset to tell what Python's functions do, with all of its weights.

    python examples/full_finetuning.py
    python examples/full_finetuning.py --preset rgemma_2b_en --dtype mixed_bfloat16 --batch_size 1

Activations are recomputed in the backward pass, gradients are added up over several batches, and
matrices alone decay. It prints the loss on questions that were held out and two answers, before and
after, and writes a preset.
"""

import keras
import python_questions

import keras_rgemma
from keras_rgemma.finetuning import AdamW


def main():
    parser = python_questions.parser(__doc__, learning_rate=1e-3)
    parser.add_argument("--accumulate", type=int, default=2, help="batches of a step")
    parser.add_argument("--out", default="rgemma_python")
    args = parser.parse_args()
    keras.utils.set_random_seed(0)  # of the order of examples

    learned, held_out = python_questions.conversations()
    lm = keras_rgemma.RGemmaCausalLM.from_preset(
        args.preset, dtype=args.dtype, gradient_checkpointing=True
    )
    lm.preprocessor.sequence_length = 128
    before = python_questions.report(lm, held_out, "before", args.batch_size)
    lm.compile(AdamW(args.learning_rate, gradient_accumulation_steps=args.accumulate))
    lm.fit(learned[: args.examples], epochs=args.epochs, batch_size=args.batch_size)
    after = python_questions.report(lm, held_out, "after", args.batch_size)
    lm.save_to_preset(args.out)
    print(f"held-out loss {before:.3f} -> {after:.3f}; the preset is {args.out}")


if __name__ == "__main__":
    main()
