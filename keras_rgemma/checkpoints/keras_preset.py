"""Loads Keras presets through KerasHub, with the checks and the zeros that it lacks."""

import contextlib
import contextvars
import math
import pathlib
import reprlib
from collections.abc import Callable
from typing import Any, NamedTuple

import h5py
import keras
from keras import ops

from keras_rgemma.checkpoints.folder import hint_of_loadable_inside
from keras_rgemma.checkpoints.loading import CHUNK, build_uninitialized, not_finite
from keras_rgemma.checkpoints.rounding import Rounding, quantized_modes
from keras_rgemma.config import RGemmaConfig
from keras_rgemma.files import read_json
from keras_rgemma.keras_internals.layers import small_collections
from keras_rgemma.keras_internals.presets import preset_config
from keras_rgemma.keras_internals.saving import saved_layers
from keras_rgemma.keras_internals.variables import initialize
from keras_rgemma.types import StrPath

_TASK = "task.json"
_JSON = ("config.json", _TASK, "preprocessor.json", "tokenizer.json")
_BLOCK = "residual_block"  # Keras' name for the groups of these layers in a file


class _Weights(NamedTuple):
    """Describes the weights that KerasHub loads into the next backbone.

    Attributes:
        size: int, bytes of the files; infinite before a download.
        num_layers: int, layers in the files; infinite before a download.
        quantize: str, the mode to which they are rounded one by one, or None.
    """

    size: float = float("inf")
    num_layers: float = float("inf")
    quantize: str | None = None


_FOLLOWING = contextvars.ContextVar("following", default=None)  # `_Weights` or None


def load(
    from_preset: Callable[..., Any],
    folder: str,
    load_weights: bool,
    quantize: str | None = None,
    **kwargs: Any,
) -> Any:
    """Loads a preset with KerasHub's `from_preset`, without random numbers, and checks it.

    Args:
        from_preset: the method of KerasHub.
        folder: str, the preset's folder, or the handle that KerasHub fetches.
        load_weights: bool; False for random weights.
        quantize: None, "int8" or "int4", to which each weight is rounded as soon as it is read.
        **kwargs: arguments of `from_preset`.

    Raises:
        ValueError: the folder is no preset, a file is missing or broken, or the weights hold NaN,
            do not fit the config, or are to be rounded again.
    """
    is_local = pathlib.Path(folder).exists()
    if is_local:
        _check_files(folder)
    saved = _saved_policy(folder) if is_local or quantize else None
    if is_local:
        kwargs["dtype"] = _policy(saved, kwargs.get("dtype"))
    if quantize and saved:
        _check_not_rounded(saved, quantize)
    if not load_weights:
        model = from_preset(folder, load_weights=False, **kwargs)
        if quantize:
            model.quantize(quantize)
        return model
    weights = _weights_in(folder) if is_local else _Weights()
    token = _FOLLOWING.set(weights._replace(quantize=quantize))
    try:
        with small_collections() if quantize else contextlib.nullcontext():
            model = from_preset(folder, **kwargs)
    except OSError as error:
        if error.errno is not None or not is_local:
            raise
        raise _broken(folder, error) from error
    finally:
        _FOLLOWING.reset(token)
    _check_finite(model)
    return model


def _check_files(folder: StrPath) -> None:
    """Raises ValueError if a local path is no folder of a preset, or a config in it is broken."""
    folder = pathlib.Path(folder)
    if not (folder / _JSON[0]).is_file():
        raise ValueError(
            f"{str(folder)!r} holds no checkpoint. It must be the folder of a Keras preset "
            "(config.json, model.weights.h5) or of Hugging Face (config.json, model.safetensors), "
            "an Orbax folder, or a `.pt` file of DeepMind."
            f"{hint_of_loadable_inside(folder)}"
        )
    for name in _JSON:
        if (folder / name).is_file():
            contents = read_json(folder / name)
            if not isinstance(contents.get("config"), dict) or "class_name" not in contents:
                raise ValueError(
                    f"{str(folder / name)!r} describes no Keras object: it must hold `class_name` "
                    "and `config`. Save the preset again, or fetch the file again."
                )

    _check_agreement(folder)


def _check_agreement(folder: pathlib.Path) -> None:
    """Raises ValueError if the two descriptions of the backbone in a preset differ.

    KerasHub makes a task from the one in task.json, and a backbone from config.json.
    """
    if not (folder / _TASK).is_file():
        return
    backbone = read_json(folder / _TASK)["config"].get("backbone")
    in_task = backbone.get("config") if isinstance(backbone, dict) else None
    if not isinstance(in_task, dict):
        return
    own = read_json(folder / _JSON[0])["config"]
    for name in sorted({*own, *in_task} - {"name"}):
        field = RGemmaConfig.__dataclass_fields__.get(name)
        default = field.default if field else None  # in the file of a version without this field
        one, other = own.get(name, default), in_task.get(name, default)
        if one != other:
            raise ValueError(
                f"{str(folder)!r} describes two backbones: {name!r} is {reprlib.repr(one)} in "
                f"{_JSON[0]} and {reprlib.repr(other)} in {_TASK}. Correct the file that was "
                "edited, or save the preset again."
            )


def _saved_policy(folder: str) -> keras.DTypePolicy | None:
    """Returns the dtype policy in a preset, or None."""
    saved = preset_config(folder)["config"].get("dtype")
    return None if saved is None else keras.dtype_policies.get(saved)


def _check_not_rounded(saved: keras.DTypePolicy, mode: str) -> None:
    """Raises ValueError if the dtype policy of a preset is that of a quantized model."""
    if modes := quantized_modes(saved):
        raise ValueError(
            f"This preset is quantized already, to {', '.join(sorted(modes))}: leave "
            f"`quantize={mode!r}` out, or load a preset of the model before it was quantized."
        )


def _policy(
    saved: keras.DTypePolicy | None, requested: str | keras.DTypePolicy | None
) -> keras.DTypePolicy | None:
    """Returns the dtype policy for KerasHub that gives each layer its saved or requested policy.

    Without it KerasHub fails on a model with other dtypes of weights and computation, and drops the
    quantization of a model that is loaded in a requested dtype.
    """
    maps = keras.dtype_policies.DTypePolicyMap
    if requested is None and isinstance(saved, maps):
        return saved  # KerasHub would drop it from the preset of a backbone alone
    if requested is None:
        is_mixed = type(saved) is keras.DTypePolicy and saved.variable_dtype != saved.compute_dtype
        return keras.config.dtype_policy() if is_mixed else None
    requested = keras.dtype_policies.get(requested)
    is_complete = isinstance(requested, maps) or requested.quantization_mode
    if not isinstance(saved, maps) or is_complete:
        return requested
    policies = {}
    for path, policy in saved.items():
        if policy.quantization_mode:
            policy = keras.dtype_policies.serialize(policy)
            policy["config"]["source_name"] = requested.name
        policies[path] = keras.dtype_policies.get(policy)
    return maps(requested, policies)


def _weights_in(folder: StrPath) -> _Weights:
    """Counts the bytes and the layers of the weights in a folder."""
    files = list(pathlib.Path(folder).glob("model*.weights.h5"))
    if not files:
        raise ValueError(
            f"{str(folder)!r} holds no model.weights.h5. Fetch it again, or pass "
            "`load_weights=False` for random weights."
        )
    blocks = set()
    for file in files:
        try:
            with h5py.File(file) as opened:
                blocks |= saved_layers(opened, _BLOCK)
        except OSError as error:
            raise _broken(file, error) from error
    return _Weights(sum(file.stat().st_size for file in files), len(blocks))


def _broken(path: StrPath, error: BaseException) -> ValueError:
    return ValueError(f"The weights in {str(path)!r} cannot be read: {error}. Fetch them again.")


def build_with_zeros(
    config: dict[str, Any], make: Callable[[dict[str, Any]], keras.Model]
) -> keras.Model:
    """Makes a backbone with zeros instead of random numbers if weights follow.

    Args:
        config: dict, the arguments of an `RGemmaBackbone`.
        make: function of such a dict that returns the backbone.

    Raises:
        ValueError: the weights that follow do not fit the architecture.
    """
    following = _FOLLOWING.get()
    if following is None:
        return make(config)
    fields = RGemmaConfig.__dataclass_fields__
    sizes = RGemmaConfig(**{name: value for name, value in config.items() if name in fields})
    if sizes.parameter_count > 2 * following.size:  # two a byte, if they are quantized to 4 bits
        raise ValueError(
            f"The config asks for {sizes.parameter_count:,} parameters, but the weights are "
            f"{following.size:,} bytes long. Check that they belong together and that the file is "
            "complete."
        )
    if following.num_layers not in (sizes.num_layers, float("inf")):
        raise ValueError(
            f"The config asks for {sizes.num_layers} layers, but the weights hold "
            f"{following.num_layers}. Check that they belong together."
        )
    if following.quantize:
        rounding = Rounding(following.quantize, config.get("dtype"))
        model = build_uninitialized(
            lambda: rounding.make(sizes, lambda dtype: make({**config, "dtype": dtype}))
        )
    else:
        model = build_uninitialized(lambda: make(config))
    zeros = keras.initializers.Zeros()
    weights = {id(weight) for weight in model.weights}
    for variable in model.variables:
        # Seeds of dropout get their own values.
        initialize(variable, zeros if id(variable) in weights else None)
    return model


def weights_follow() -> bool:
    """Returns whether KerasHub loads weights into the next backbone."""
    return _FOLLOWING.get() is not None


def check_lora_size(count: int) -> None:
    """Raises ValueError if A and B have more elements than fit into the weights that follow."""
    size = _FOLLOWING.get().size
    if 4 * count > size:
        raise ValueError(
            f"The config asks for LoRA of {count:,} parameters, but the weights are {size:,} bytes "
            "long. Check that they belong together and that the file is complete."
        )


def _check_finite(model: keras.Model) -> None:
    """Raises ValueError if a weight holds NaN or infinity."""
    for weight in model.weights:
        if not (keras.backend.is_float_dtype(weight.dtype) and weight.shape):
            continue
        rows = max(1, CHUNK // math.prod(weight.shape[1:]))
        for start in range(0, weight.shape[0], rows):
            # Some rows at a time, to save memory: XLA's min and max skip NaN on a CPU.
            if not ops.all(ops.isfinite(weight.value[start : start + rows])):
                raise not_finite(weight.path, weight.dtype)
