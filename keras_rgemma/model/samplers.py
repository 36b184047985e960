"""What generation needs to know of KerasHub's samplers."""

import difflib

import keras_hub
from keras import ops

NAMES = ("greedy", "top_k", "top_p", "random", "beam", "contrastive")


class _ArgmaxSampler(keras_hub.samplers.GreedySampler):
    """Greedy search without the softmax, which does not change which token is the largest."""

    def compute_probabilities(self, logits):
        return ops.cast(logits, "float32")


def without_softmax(sampler):
    """A sampler that gives the same tokens, and skips the softmax where nothing else needs it."""
    return _ArgmaxSampler() if type(sampler) is keras_hub.samplers.GreedySampler else sampler


def compares_hidden_states(sampler):
    """Whether a sampler wants the hidden states of the prompt."""
    return isinstance(sampler, keras_hub.samplers.ContrastiveSampler)


def read_sampler(sampler):
    """The sampler that a name or an instance stands for.

    Raises:
        ValueError: there is none of this name, it is no sampler, or it cannot work behind
            `generate`.
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
    return sampler
