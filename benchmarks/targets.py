"""States what this project's model must reach, and what it aims at, beside its peers."""

from typing import NamedTuple

OURS, HUGGING_FACE, DEEPMIND, GEMMA = "keras-rgemma", "transformers", "recurrentgemma", "Gemma"
BOUND = "bound"  # what the machine's own rates allow
SIDE_BY_SIDE = 1 / 3  # the least share of its speed that each of two processes at once keeps
BITS_PER_BYTE = {"int8": 0.01, "int4": 0.05}  # the most by which those of the preset may change


class Target(NamedTuple):
    """Compares one number of this project's model with another.

    Attributes:
        backend: str.
        number: str, a kind of work, or "first train" for its first call.
        reference: str, the implementation it is compared with, or `BOUND`.
        floor: float, the least of our speed / its speed; or None.
        goal: float, what that ratio should become; or None.
        variant: str, "", "bfloat16", "int8" or "int4": of our model.
    """

    backend: str
    number: str
    reference: str
    floor: float | None
    goal: float | None
    variant: str = ""


_JAX, _TF, _TORCH = "jax", "tensorflow", "torch"

FLOAT32 = [
    Target(_JAX, "prefill", BOUND, 0.70, 0.85),
    Target(_JAX, "decode B1", BOUND, 0.85, 0.95),
    Target(_JAX, "decode B8", HUGGING_FACE, 1.15, 1.5),
    Target(_JAX, "train", BOUND, 0.70, 0.80),
    Target(_TORCH, "prefill", BOUND, 0.75, 0.86),
    Target(_TORCH, "decode B1", HUGGING_FACE, 1.05, 1.2),
    Target(_TORCH, "decode B8", HUGGING_FACE, 1.0, 1.2),
    Target(_TORCH, "train", BOUND, 0.80, 0.88),
    Target(_TF, "prefill", BOUND, 0.75, 0.85),
    Target(_TF, "decode B1", GEMMA, 1.0, 1.25),
    Target(_TF, "decode B8", GEMMA, 1.0, 1.2),
    Target(_TF, "train", BOUND, 0.80, 0.90),
    # Never slower than Gemma there, and faster than DeepMind's.
    *(
        Target(backend, number, reference, 1.0, 1.0)
        for backend in (_JAX, _TF, _TORCH)
        for number in ("prefill", "decode B1", "decode B8", "train")
        for reference in (GEMMA, DEEPMIND)
    ),
    # First calls: of Gemma's time at most 1.2, better 0.8.
    *(
        Target(backend, number, GEMMA, 1 / 1.2, 1 / 0.8)
        for backend in (_JAX, _TF, _TORCH)
        for number in ("first decode B1", "first train")
    ),
]
# Against the same model in float32.
SMALLER = [
    Target(_JAX, "prefill", OURS, 1.7, 1.7, "bfloat16"),
    Target(_TORCH, "prefill", OURS, 3.0, 3.0, "bfloat16"),
    Target(_JAX, "decode B1", OURS, 1.4, 1.4, "bfloat16"),
    Target(_TORCH, "decode B1", OURS, 1.4, 1.4, "bfloat16"),
    Target(_TORCH, "decode B1", OURS, 1.3, 1.8, "int8"),
    Target(_TORCH, "decode B1", OURS, 1.3, 2.5, "int4"),
    *(
        Target(backend, "decode B1", OURS, None, goal, mode)
        for backend in (_JAX, _TF)
        for mode, goal in (("int8", 1.8), ("int4", 2.5))
    ),
]
# 2B in bfloat16; beside them load and peak, which are no ratios.
FULL_SIZE = [
    Target(_JAX, "decode B1", HUGGING_FACE, 1.05, None),
    Target(_TORCH, "decode B1", HUGGING_FACE, 1.05, None),
    Target(_TF, "decode B1", HUGGING_FACE, 0.9, None),
    Target(_TORCH, "prefill", HUGGING_FACE, 1.0, 1.3),
    Target(_TF, "prefill", HUGGING_FACE, 1.2, 1.3),
    Target(_JAX, "prefill", HUGGING_FACE, 55 / 118, 80 / 118),
    *(Target(backend, "decode B1", BOUND, None, 0.75) for backend in (_JAX, _TF, _TORCH)),
]
