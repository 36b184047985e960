"""Finds the folder or the handle that the name of a preset stands for."""

import difflib
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import keras

from keras_rgemma.checkpoints.adapter import CONFIG as ADAPTER_CONFIG
from keras_rgemma.checkpoints.adapter import check_is_adapter, is_adapter
from keras_rgemma.checkpoints.folder import tokenizer_file
from keras_rgemma.checkpoints.hub import CONFIG, TOKENIZER, WEIGHTS, fetch, inside
from keras_rgemma.checkpoints.huggingface import CONFIG as MODEL_CONFIG
from keras_rgemma.checkpoints.registry import EMBEDDED, presets
from keras_rgemma.files import read_json
from keras_rgemma.keras_internals.presets import preset_config
from keras_rgemma.types import StrPath

# The id of a repository on Hugging Face or ModelScope, as PEFT names the base of an adapter.
_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
_ERRORS = (ValueError, FileNotFoundError, PermissionError, ConnectionError)


def resolve(
    preset: StrPath, part: str, revision: str | None = None, subfolder: str | None = None
) -> str:
    """Finds a preset: returns a local folder or file, or a handle that KerasHub fetches.

    A preset on a hub is fetched first. The tokenizer of an adapter without one is that of its base.

    Args:
        preset: str or path.
        part: the part of the preset that is needed, see `checkpoints.hub.fetch`.
        revision, subfolder: str, see `checkpoints.hub.fetch`.

    Raises:
        ValueError: no preset has this name, the preset has no weights, or a revision was passed for
            a local preset. For handles see `checkpoints.hub.fetch`, too.
    """
    folder = _resolve(preset, part, revision, subfolder)
    if part == TOKENIZER and is_adapter(folder) and not tokenizer_file(folder):
        return base_of(folder, preset, part)
    return folder


def resolve_model(
    preset: StrPath, part: str, revision: str | None = None, subfolder: str | None = None
) -> tuple[str, str | None]:
    """Finds a preset like `resolve`, and the base of an adapter.

    Returns:
        The folder or handle of the model, and the folder of the adapter on it or None.

    Raises:
        ValueError, FileNotFoundError, PermissionError, ConnectionError: as of `resolve`, also for
            the base of an adapter.
    """
    folder = _resolve(preset, part, revision, subfolder)
    return (base_of(folder, preset, part), folder) if is_adapter(folder) else (folder, None)


def resolve_adapter(
    path: StrPath, revision: str | None = None, subfolder: str | None = None
) -> str:
    """Finds an adapter of PEFT in a local folder or on a hub; returns its folder, str.

    Raises:
        FileNotFoundError: there is no such folder. See `checkpoints.hub.fetch`, too.
        ValueError: the folder holds no adapter, or a revision was passed for a local folder.
    """
    if "://" in str(path):
        if not str(path).startswith("kaggle://"):  # which fetches a repository as a whole
            check_is_adapter(fetch(str(path), revision, TOKENIZER, subfolder), str(path))
        folder = fetch(str(path), revision, WEIGHTS, subfolder)
        check_is_adapter(folder, str(path))
        return folder
    _check_no_revision(path, revision)
    folder = inside(path, subfolder)
    check_is_adapter(folder)
    return str(folder)


def base_of(folder: str, preset: StrPath, part: str) -> str:
    """Finds the base of an adapter: returns what `resolve` does.

    Args:
        folder: str, the adapter's folder.
        preset: str or path that the user passed for the adapter.
        part: see `resolve`.

    Raises:
        ValueError, FileNotFoundError, PermissionError, ConnectionError: the base is not named or
            cannot be found.
    """
    config = read_json(pathlib.Path(folder) / ADAPTER_CONFIG)
    name, revision = config.get("base_model_name_or_path"), config.get("revision")
    way_out = (
        f" {str(preset)!r} is an adapter with base_model_name_or_path={name!r} in "
        f"{ADAPTER_CONFIG}. To use another base, load that with `from_preset` and call "
        f"`load_from_peft({str(preset)!r})` on it."
    )
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"The base of the adapter is not known.{way_out}")
    handle = name
    if name not in presets() and "://" not in name and not pathlib.Path(name).exists():
        if not _HUB_ID.fullmatch(name):
            raise FileNotFoundError(f"There is no folder {name!r} on this machine.{way_out}")
        is_model_scope = str(preset).startswith("modelscope://")
        handle = f"{'modelscope' if is_model_scope else 'hf'}://{name}"
    try:
        base = _resolve(handle, part, revision if "://" in handle else None)
    except _ERRORS as error:
        kind = next(kind for kind in _ERRORS if isinstance(error, kind))
        raise kind(f"{error}{way_out}") from error
    if is_adapter(base) and not (pathlib.Path(base) / MODEL_CONFIG).is_file():
        raise ValueError(f"The base {handle!r} is an adapter itself.{way_out}")
    return base


def _resolve(
    preset: StrPath, part: str, revision: str | None = None, subfolder: str | None = None
) -> str:
    """Finds a preset like `resolve`; an adapter is a preset as any other."""
    if not isinstance(preset, (str, pathlib.PurePath)):
        raise TypeError(
            "A preset is a name, a folder or a hub handle: a str or a path. Received: "
            f"{preset!r}. The built-in names are {list(presets())}."
        )
    preset = str(preset)
    known = presets()
    handle = _handle(preset, known[preset], part) if preset in known else preset
    if "://" in handle:
        return fetch(handle, revision, part, subfolder)
    _check_no_revision(preset, revision)
    if preset in known or (preset.strip() and pathlib.Path(preset).exists()):
        return handle if subfolder is None else str(inside(handle, subfolder))
    # Any name is near to some preset; a path is not.
    near = difflib.get_close_matches(preset, known, n=1, cutoff=0.6 if "/" in preset else 0.0)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"Unknown preset {preset!r}.{hint} The built-in presets are "
        f"{list(known)}; a folder (this one does not exist) or a hub handle such as "
        "'hf://user/model' works, too."
    )


def _check_no_revision(preset: StrPath, revision: str | None) -> None:
    """Raises ValueError if a revision was passed for a local preset."""
    if revision is not None:
        raise ValueError(
            f"`revision` is for what lies on a hub. Received: {revision!r} with {str(preset)!r}."
        )


def _handle(preset: str, metadata: Mapping[str, Any], part: str) -> str:
    """Returns the folder, or the handle on a hub, of a part of a built-in preset."""
    if metadata["weights"] == EMBEDDED or part == CONFIG:
        return metadata["path"]
    if metadata["weights"] is not None:
        return metadata["weights"]
    if part == TOKENIZER:
        raise ValueError(
            f"The preset {preset!r} comes without a tokenizer. Create one from a SentencePiece "
            "file, or use that of 'rgemma_tiny_en'."
        )
    raise ValueError(
        f"The preset {preset!r} has no public weights: it is an architecture from the paper. "
        "Pass `load_weights=False` for a randomly initialised model."
    )


def has_tokenizer(folder: StrPath) -> bool:
    """Checks whether a local preset folder holds a tokenizer."""
    return (pathlib.Path(folder) / "tokenizer.json").exists()


def saved_dtype(preset: str) -> str | None:
    """Returns the dtype of the weights of a Keras preset, str, which KerasHub does not keep.

    None for a quantized preset, and for a preset without a dtype in its config.
    """
    saved = preset_config(preset)["config"].get("dtype")
    policy = keras.dtype_policies.get(saved) if saved is not None else None
    return policy.variable_dtype if type(policy) is keras.DTypePolicy else None


class Presets:
    """Defines the `presets` attribute of the public classes: a fresh dict at each access."""

    def __get__(self, instance: object, owner: type | None) -> dict[str, dict[str, Any]]:
        return {name: dict(metadata) for name, metadata in presets().items()}
