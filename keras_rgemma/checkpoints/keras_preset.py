"""Keras presets, which KerasHub reads: what it leaves open while it does."""

import contextvars
import pathlib

import keras
from keras import ops

from keras_rgemma.checkpoints.loading import not_finite, without_values
from keras_rgemma.config import RGemmaConfig

# How many bytes of weights KerasHub reads into a backbone as soon as it is made, if it does;
# infinite where it has yet to fetch them.
_FOLLOWING = contextvars.ContextVar("following", default=None)


def load(from_preset, folder, load_weights, **kwargs):
    """What KerasHub's `from_preset` returns, made without random numbers and checked.

    Args:
        from_preset: the method of KerasHub.
        folder: str, the preset's folder, or the handle that KerasHub fetches.
        load_weights: bool; False for random weights.
        **kwargs: what `from_preset` takes.

    Raises:
        ValueError: the weights hold NaN, or are smaller than the architecture.
    """
    if not load_weights:
        return from_preset(folder, load_weights=False, **kwargs)
    files = pathlib.Path(folder).glob("model*.weights.h5")
    size = sum(file.stat().st_size for file in files) or float("inf")
    token = _FOLLOWING.set(size)
    try:
        model = from_preset(folder, **kwargs)
    finally:
        _FOLLOWING.reset(token)
    _check_finite(model)
    return model


def made(config, make):
    """What `make` returns, with zeros instead of random numbers for weights that follow.

    Args:
        config: dict, the arguments of an `RGemmaBackbone`.
        make: function that returns it.

    Raises:
        ValueError: the files of weights are smaller than the architecture.
    """
    following = _FOLLOWING.get()
    if following is None:
        return make()
    fields = RGemmaConfig.__dataclass_fields__
    count = RGemmaConfig(**{k: v for k, v in config.items() if k in fields}).parameter_count
    if count > 2 * following:  # of 4 bits, if it is quantized
        raise ValueError(
            f"The config asks for {count:,} parameters, but the weights are {following:,} bytes "
            "long. Check that they belong together and that the file is complete."
        )
    model = without_values(make)
    zeros = keras.initializers.Zeros()
    weights = {id(weight) for weight in model.weights}
    for variable in model.variables:
        if id(variable) in weights:
            variable._initializer = zeros
        variable._deferred_initialize()  # seeds of dropout get their own value
    return model


def _check_finite(model):
    for weight in model.weights:
        if keras.backend.is_float_dtype(weight.dtype):
            ends = ops.stack([ops.min(weight.value), ops.max(weight.value)])
            if not ops.all(ops.isfinite(ends)):
                raise not_finite(weight.path)
