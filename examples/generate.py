"""Writes text with a preset: continues a sentence, and answers a question.

    python examples/generate.py
    KERAS_BACKEND=torch python examples/generate.py --prompt "And it came to pass"

The embedded preset is used unless another is named, so this works offline. It prints

    In the beginning of the reign of the reign of Jehoiakim king of Judah began to reign over ...

    What is a lighthouse?
    A lighthouse is a house where lighthouse can be kept.
"""

import argparse

import keras_rgemma

QUESTION = "<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="rgemma_tiny_en")
    parser.add_argument("--prompt", default="In the beginning")
    parser.add_argument("--question", default="What is a lighthouse?")
    parser.add_argument("--max_new_tokens", type=int, default=48)
    args = parser.parse_args()

    lm = keras_rgemma.RGemmaCausalLM.from_preset(args.preset)
    print(lm.generate(args.prompt, max_new_tokens=args.max_new_tokens))
    print()
    print(args.question)
    question = QUESTION.format(args.question)
    answer = lm.generate(question, max_new_tokens=args.max_new_tokens, strip_prompt=True)
    print(answer)


if __name__ == "__main__":
    main()
