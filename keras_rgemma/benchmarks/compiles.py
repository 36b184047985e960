"""Counts the programs that `generate` compiles for prompts and limits of many lengths.

    KERAS_BACKEND=jax python -m keras_rgemma.benchmarks.compiles

Nothing is compiled on PyTorch, where the number is 0.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

import keras_rgemma

REQUESTS = 200
LONGEST = 3000  # tokens of a prompt, and of its answer
SIZES: dict[str, Any] = {
    "vocabulary_size": 64,
    "num_layers": 2,
    "block_types": ("recurrent", "attention"),
    "hidden_dim": 16,
    "intermediate_dim": 24,
    "num_query_heads": 2,
    "sliding_window_size": 32,
}
# All hold 0, the token that the model writes: how long the text may get is what matters here.
STOP_SETS = ((0,), (0, 1), (0, 5, 9), (0, 1, 2, 3, 4, 5, 6, 7))


def count(
    requests: int = REQUESTS, seed: int = 0, stop_sets: Sequence[tuple[int, ...]] = STOP_SETS[:1]
) -> int:
    """Counts the programs for random prompts and `max_length`s, one request at a time.

    Args:
        requests: int.
        seed: int.
        stop_sets: sequence of `stop_token_ids`, which the requests take in turn.
    """
    lm = keras_rgemma.RGemmaCausalLM(keras_rgemma.RGemmaBackbone(**SIZES))
    embeddings = lm.backbone.token_embedding.embeddings
    embeddings.assign(np.zeros(embeddings.shape))  # all logits are equal, and the first is taken
    random = np.random.RandomState(seed)
    for index in range(requests):
        # As many short ones as long ones.
        prompt, answer = np.exp(random.uniform(0, np.log(LONGEST), 2)).astype(int)
        ids = random.randint(0, SIZES["vocabulary_size"], (1, prompt))
        lm.generate(
            {"token_ids": ids},
            max_length=prompt + answer,
            stop_token_ids=stop_sets[index % len(stop_sets)],
        )
    return lm.make_generate_function().num_compiled


def main() -> None:
    name = keras.config.backend()
    print(f"{name}: {REQUESTS} requests, {count()} programs with one set of stop ids")
    print(f"{name}: {REQUESTS} requests, {count(stop_sets=STOP_SETS)} programs with four")


if __name__ == "__main__":
    main()
