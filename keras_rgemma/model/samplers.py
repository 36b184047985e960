"""Checks KerasHub's samplers, and tells generation how each works."""

import difflib
from typing import Any

import keras_hub
from keras import ops

from keras_rgemma.types import Tensor

NAMES = ("greedy", "top_k", "top_p", "random", "beam", "contrastive")
# The attribute of each sampler that counts the tokens of the vocabulary that it looks at.
COUNTS = {
    keras_hub.samplers.TopKSampler: "k",
    keras_hub.samplers.TopPSampler: "k",
    keras_hub.samplers.ContrastiveSampler: "k",
    keras_hub.samplers.BeamSampler: "num_beams",
}


class _ArgmaxSampler(keras_hub.samplers.GreedySampler):
    """Chooses the most probable token without a softmax, which does not change the choice."""

    def compute_probabilities(self, logits: Tensor) -> Tensor:
        return ops.cast(logits, "float32")


def without_softmax(sampler: keras_hub.samplers.Sampler) -> keras_hub.samplers.Sampler:
    """Returns a sampler of the same tokens that skips the softmax where no choice needs it."""
    return _ArgmaxSampler() if type(sampler) is keras_hub.samplers.GreedySampler else sampler


def compares_hidden_states(sampler: keras_hub.samplers.Sampler) -> bool:
    """Returns whether a sampler needs the hidden states of the prompt."""
    return isinstance(sampler, keras_hub.samplers.ContrastiveSampler)


def is_stepwise(sampler: keras_hub.samplers.Sampler) -> bool:
    """Returns whether a sampler never changes a token that it has chosen."""
    return not isinstance(
        sampler, (keras_hub.samplers.BeamSampler, keras_hub.samplers.ContrastiveSampler)
    )


def read_sampler(
    sampler: str | dict[str, Any] | keras_hub.samplers.Sampler, vocabulary_size: int
) -> keras_hub.samplers.Sampler:
    """Returns the sampler of a name, a config or an instance, and checks it.

    Args:
        sampler: str, dict of its config, or `keras_hub.samplers.Sampler`.
        vocabulary_size: int, the most tokens that the sampler can look at.

    Raises:
        ValueError: the name is unknown, the object is no sampler, `generate` cannot use the
            sampler, or one of its numbers is out of range.
    """
    given = sampler
    if isinstance(given, (str, dict)):
        sampler = keras_hub.samplers.get(given)
    if not isinstance(sampler, keras_hub.samplers.Sampler):
        hint = ""
        if isinstance(given, str):
            hint = f" Did you mean {difflib.get_close_matches(given, NAMES, cutoff=0.0)[0]!r}?"
        raise ValueError(
            f"`sampler` must be one of {NAMES} or an instance from keras_hub.samplers. Received: "
            f"{given!r}.{hint}"
        )
    if getattr(sampler, "return_all_beams", False):
        raise ValueError(
            "`generate` returns one continuation a prompt. Received a sampler with "
            "`return_all_beams=True`. Create it with `return_all_beams=False`."
        )
    if isinstance(sampler, keras_hub.samplers.SpeculativeSampler):
        raise ValueError(
            "`SpeculativeSampler` needs a draft model, which `generate` does not take. Use another "
            "sampler, such as 'greedy'."
        )
    _check_numbers(sampler, vocabulary_size)
    return sampler


def _check_numbers(sampler: keras_hub.samplers.Sampler, vocabulary_size: int) -> None:
    if not sampler.temperature > 0:
        raise ValueError(
            f"`temperature` must be above 0. Received: {sampler.temperature!r}. For the most "
            "probable token each time, use 'greedy'."
        )
    for kind, name in COUNTS.items():
        if not isinstance(sampler, kind):
            continue
        count = getattr(sampler, name)
        if count is not None and not 1 <= count <= vocabulary_size:
            raise ValueError(
                f"`{name}` of {type(sampler).__name__} must lie in [1, {vocabulary_size}], the "
                f"vocabulary. Received: {count!r}."
            )
