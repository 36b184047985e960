"""Reads texts of growing length with the embedded preset: time, memory, and exactness at the end.

    python tests/laws/long_text.py 10000 100000 1000000

Each text is read from an iterator of pieces. Memory is the peak of the process. The logits of the
last tokens are compared with those of a float64 reference that goes on from the state before them.
"""

import pathlib
import resource
import sys
import time

sys.path.append(str(pathlib.Path(__file__).parent.parent))

import keras
import numpy as np

import keras_rgemma
import tiny
from parity.float64 import Reference

LAST = 24  # tokens that are compared
PIECE = 5000


def pieces(length):
    """The ids of a text, some at a time, so that the text is never in memory as a whole."""
    random = np.random.RandomState(0)
    for start in range(0, length, PIECE):
        yield random.randint(4, 4096, min(PIECE, length - start))


def distance(lm, state, ids):
    """The largest distance of logits behind a state from the reference, over max(1, |logit|)."""
    found = tiny.numpy(lm.score(ids[None], state=state))[0]
    reference = Reference(lm, state)
    expected = reference.logits(np.append(tiny.numpy(state.last_token_ids), ids))[1:]
    return (np.abs(found - expected) / np.maximum(1, np.abs(expected))).max()


def main(lengths):
    lm = keras_rgemma.RGemmaCausalLM.from_preset("rgemma_tiny_en")
    ids = np.random.RandomState(1).randint(4, 4096, LAST)
    distance(lm, lm.prefill(pieces(2 * PIECE)), ids)  # compiles
    print(keras.config.backend())
    print(f"{'tokens':>10}{'seconds':>10}{'tokens/s':>10}{'peak MB':>10}{'distance':>11}")
    for length in lengths:
        start = time.perf_counter()
        state = lm.prefill(pieces(length))
        seconds = time.perf_counter() - start
        assert state.num_tokens.tolist() == [length]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        error = distance(lm, state, ids)
        row = f"{length:>10,}{seconds:>10.1f}{length / seconds:>10.0f}{peak:>10.1f}{error:>11.1e}"
        print(row, flush=True)


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]] or [10_000, 100_000, 1_000_000])
