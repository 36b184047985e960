"""How many programs `generate` compiles for prompts and limits of many lengths.

    KERAS_BACKEND=jax python -m keras_rgemma.benchmarks.compiles

Nothing is compiled on PyTorch, where the number is 0.
"""

import keras
import numpy as np

import keras_rgemma

REQUESTS = 200
LONGEST = 3000  # tokens of a prompt, and of its answer
SIZES = {
    "vocabulary_size": 64,
    "num_layers": 2,
    "block_types": ("recurrent", "attention"),
    "hidden_dim": 16,
    "intermediate_dim": 24,
    "num_query_heads": 2,
    "sliding_window_size": 32,
}


def count(requests=REQUESTS, seed=0):
    """The programs that random prompts and `max_length`s compile, one request at a time.

    Args:
        requests: int.
        seed: int.
    """
    lm = keras_rgemma.RGemmaCausalLM(keras_rgemma.RGemmaBackbone(**SIZES))
    random = np.random.RandomState(seed)
    for _ in range(requests):
        # As many short ones as long ones.
        prompt, answer = np.exp(random.uniform(0, np.log(LONGEST), 2)).astype(int)
        ids = random.randint(0, SIZES["vocabulary_size"], (1, prompt))
        # Every token ends the text: how long it may get is what matters here.
        lm.generate(
            {"token_ids": ids},
            max_length=prompt + answer,
            stop_token_ids=range(SIZES["vocabulary_size"]),
        )
    return lm.make_generate_function().num_compiled


def main():
    print(f"{keras.config.backend()}: {REQUESTS} requests, {count()} programs")


if __name__ == "__main__":
    main()
