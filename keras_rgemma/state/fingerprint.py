"""Identifies a model by its architecture and by checksums of its weights."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import ml_dtypes
import numpy as np

from keras_rgemma.backend import backend_module
from keras_rgemma.config import RGemmaConfig

# Fields of the config that change no result of a model outside of training.
_TRAINING = ("dropout", "gradient_checkpointing")
_SAMPLES = 4  # at most, along each axis of a weight


class Fingerprint(NamedTuple):
    """Identifies the model that a state or an adapter belongs to.

    Attributes:
        architecture: str, the JSON of the sizes and switches of the config.
        weights: str, a hash of a sample of the weights.
        checksums: str, a hash of a checksum of each weight, which covers every number; "" in a
            fingerprint from a file of a version that had none.
    """

    architecture: str
    weights: str
    checksums: str = ""

    def difference(self, other: Fingerprint) -> str:
        """Describes the differences from another fingerprint; returns an empty str if none."""
        mine, others = (_with_defaults(x.architecture) for x in (self, other))
        names = [x for x in sorted({*mine, *others}) if mine.get(x) != others.get(x)]
        if names:
            return ", ".join(f"`{x}` {mine.get(x)} and {others.get(x)}" for x in names)
        is_known = self.checksums and other.checksums
        if self.weights == other.weights and (self.checksums == other.checksums or not is_known):
            return ""
        return "the same sizes, but other weights"


def _with_defaults(architecture: str) -> dict[str, Any]:
    """Reads an architecture, and adds the fields that its version had not, with their defaults."""
    fields = [x for x in dataclasses.fields(RGemmaConfig) if x.default is not dataclasses.MISSING]
    defaults = {x.name: x.default for x in fields if x.name not in _TRAINING}
    return {**json.loads(json.dumps(defaults)), **json.loads(architecture)}


def fingerprint(backbone: Any, counts: Callable[[str], bool] = lambda name: True) -> Fingerprint:
    """Computes the `Fingerprint` of a backbone, the same on every backend.

    Weights are rounded to bfloat16 before they are hashed: a model in float32 and the same model in
    bfloat16 have one fingerprint. Weights that were rounded to float16 before differ in some bits,
    so a model in float16 has a fingerprint of its own.

    Args:
        backbone: `RGemmaBackbone`.
        counts: function of the last part of a weight's path; False leaves that weight out.
    """
    weights = [w for w in backbone.weights if counts(w.path.rpartition("/")[2])]
    values = backend_module("keras_rgemma.state").values_of(weights)
    return _fingerprint(backbone.config, weights, values)


def fingerprint_later(backbone: Any) -> Callable[[], Fingerprint]:
    """Returns a function that returns the `Fingerprint` of the weights as they are now.

    Where it is computed anew each time, as on TensorFlow, it is computed only when it is asked for.
    """
    weights, backend = backbone.weights, backend_module("keras_rgemma.state")
    values = backend.unchanging(backend.values_of(weights))
    if values is None:
        now = fingerprint(backbone)
        return lambda: now
    return functools.cache(functools.partial(_fingerprint, backbone.config, weights, values))


def _fingerprint(
    config: RGemmaConfig, weights: Sequence[keras.Variable], values: Sequence[Any]
) -> Fingerprint:
    """Computes the `Fingerprint` of weights that have these values."""
    sizes = {name: value for name, value in config.to_dict().items() if name not in _TRAINING}
    strides = [tuple(-(-size // _SAMPLES) for size in weight.shape) for weight in weights]
    samples, checksums = backend_module("keras_rgemma.state").samples_and_checksums(values, strides)
    sampled, covered = hashlib.sha256(), hashlib.sha256()
    for weight, sample, checksum in zip(weights, samples, checksums, strict=True):
        sampled.update(weight.path.encode())
        sampled.update(np.asarray(sample, "float32").astype(ml_dtypes.bfloat16).tobytes())
        covered.update(weight.path.encode())
        covered.update(np.asarray(checksum).astype("<u4").tobytes())
    return Fingerprint(json.dumps(sizes, sort_keys=True), sampled.hexdigest(), covered.hexdigest())
