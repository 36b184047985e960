"""Teaches a quantized preset to tell what Python's functions do: QLoRA.

    python examples/qlora.py
    python examples/qlora.py --preset rgemma_instruct_9b_en --dtype bfloat16 --mode int4

The base is rounded to 8 or 4 bits and frozen; LoRA learns beside it. It prints the loss on
questions that were held out and two answers: of the base, of the rounded base, and after training.
"""

import keras
import python_questions

import keras_rgemma
from keras_rgemma.finetuning import AdamW


def main():
    parser = python_questions.parser(__doc__, learning_rate=3e-3)
    parser.add_argument("--mode", choices=("int8", "int4"), default="int8")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--out", default="python_quantized.lora.h5")
    args = parser.parse_args()
    keras.utils.set_random_seed(0)  # of A, and of the order of examples

    learned, held_out = python_questions.conversations()
    lm = keras_rgemma.RGemmaCausalLM.from_preset(args.preset, dtype=args.dtype)
    lm.preprocessor.sequence_length = 128
    python_questions.report(lm, held_out, "before", args.batch_size)

    # As is usual: the embedding, which makes the logits, too, is what rounding costs most.
    lm.quantize(args.mode, filters=lambda layer: layer is not lm.backbone.token_embedding)
    before = python_questions.report(lm, held_out, args.mode, args.batch_size)
    lm.backbone.enable_lora(args.rank)
    lm.compile(AdamW(args.learning_rate))
    lm.fit(learned[: args.examples], epochs=args.epochs, batch_size=args.batch_size)
    after = python_questions.report(lm, held_out, "after", args.batch_size)
    lm.backbone.save_lora_weights(args.out)
    print(f"held-out loss {before:.3f} -> {after:.3f}; the adapter is {args.out}")


if __name__ == "__main__":
    main()
