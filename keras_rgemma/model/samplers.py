"""What generation needs to know of KerasHub's samplers."""

import keras_hub
from keras import ops


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


def check_sampler(sampler):
    """Raises a ValueError for samplers that cannot work behind `generate`."""
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
