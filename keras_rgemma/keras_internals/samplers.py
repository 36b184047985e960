"""The loop of KerasHub's samplers."""

import copy


def recorded(sampler):
    """Copies a sampler, and records the variables with which each of its loops ended.

    Samplers return tokens alone, but keep what `next` returned among the variables of their loop.

    Args:
        sampler: `keras_hub.samplers.Sampler`.

    Returns:
        A pair of the copy and a list. A call of the copy appends the loop's variables to it: the
        tokens, the cache, then others.
    """
    loops, copied = [], copy.copy(sampler)

    def run_loop(*args, **kwargs):
        loops.append(sampler.run_loop(*args, **kwargs))
        return loops[-1]

    copied.run_loop = run_loop
    return copied, loops
