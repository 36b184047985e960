"""Identifies a model by its architecture and a hash of a sample of its weights."""

import hashlib
import json
from typing import NamedTuple

import ml_dtypes
import numpy as np

from keras_rgemma.backend import backend_module

# Fields of the config that change no result of a model outside of training.
_TRAINING = ("dropout", "gradient_checkpointing")
_SAMPLES = 4  # at most, along each axis of a weight


class Fingerprint(NamedTuple):
    """Identifies the model that a state belongs to.

    Attributes:
        architecture: str, the JSON of the sizes and switches of the config.
        weights: str, a hash of a sample of the weights.
    """

    architecture: str
    weights: str

    def difference(self, other):
        """Describes the differences from another fingerprint; returns an empty str if none."""
        mine, others = json.loads(self.architecture), json.loads(other.architecture)
        names = [x for x in sorted({*mine, *others}) if mine.get(x) != others.get(x)]
        if names:
            return ", ".join(f"`{x}` {mine.get(x)} and {others.get(x)}" for x in names)
        return "" if self.weights == other.weights else "the same sizes, but other weights"


def fingerprint(backbone, counts=lambda name: True):
    """Computes the `Fingerprint` of a backbone, the same on every backend.

    Weights are rounded to bfloat16 before they are hashed: a model in float32 and the same model in
    bfloat16 have one fingerprint. Weights that were rounded to float16 before differ in some bits,
    so a model in float16 has a fingerprint of its own.

    Args:
        backbone: `RGemmaBackbone`.
        counts: function of the last part of a weight's path; False leaves that weight out.
    """
    config = backbone.config.to_dict()
    sizes = {name: value for name, value in config.items() if name not in _TRAINING}
    weights = [w for w in backbone.weights if counts(w.path.rpartition("/")[2])]
    strides = [tuple(-(-size // _SAMPLES) for size in weight.shape) for weight in weights]
    samples = backend_module("keras_rgemma.state").samples([w.value for w in weights], strides)
    digest = hashlib.sha256()
    for weight, sample in zip(weights, samples, strict=True):
        digest.update(weight.path.encode())
        digest.update(np.asarray(sample, "float32").astype(ml_dtypes.bfloat16).tobytes())
    return Fingerprint(json.dumps(sizes, sort_keys=True), digest.hexdigest())
