"""Finds the folder or the handle that the name of a preset stands for."""

import difflib
import pathlib

import keras

from keras_rgemma.checkpoints.hub import CONFIG, TOKENIZER, fetch
from keras_rgemma.checkpoints.registry import EMBEDDED, presets
from keras_rgemma.keras_internals.presets import preset_config


def resolve(preset, part, revision=None):
    """Finds a preset: returns a local folder or file, or a handle that KerasHub fetches.

    A preset on a hub is fetched first.

    Args:
        preset: str or path.
        part: the part of the preset that is needed, see `checkpoints.hub.fetch`.
        revision: str, see `checkpoints.hub.fetch`.

    Raises:
        ValueError: no preset has this name, the preset has no weights, or a revision was passed for
            a local preset. For handles see `checkpoints.hub.fetch`, too.
    """
    if not isinstance(preset, (str, pathlib.PurePath)):
        raise TypeError(
            "A preset is a name, a folder or a hub handle: a str or a path. Received: "
            f"{preset!r}. The built-in names are {list(presets())}."
        )
    preset = str(preset)
    known = presets()
    handle = _handle(preset, known[preset], part) if preset in known else preset
    if "://" in handle:
        return fetch(handle, revision, part)
    if revision is not None:
        raise ValueError(
            f"`revision` is for what lies on a hub. Received: {revision!r} with {preset!r}."
        )
    if preset in known or (preset.strip() and pathlib.Path(preset).exists()):
        return handle
    # Any name is near to some preset; a path is not.
    near = difflib.get_close_matches(preset, known, n=1, cutoff=0.6 if "/" in preset else 0.0)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"Unknown preset {preset!r}.{hint} The built-in presets are "
        f"{list(known)}; a folder (this one does not exist) or a hub handle such as "
        "'hf://user/model' works, too."
    )


def _handle(preset, metadata, part):
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


def has_tokenizer(folder):
    """Checks whether a local preset folder holds a tokenizer."""
    return (pathlib.Path(folder) / "tokenizer.json").exists()


def saved_dtype(preset):
    """Returns the dtype of the weights of a Keras preset, str, which KerasHub does not keep.

    None for a quantized preset, and for a preset without a dtype in its config.
    """
    saved = preset_config(preset)["config"].get("dtype")
    policy = keras.dtype_policies.get(saved) if saved is not None else None
    return policy.variable_dtype if type(policy) is keras.DTypePolicy else None


class Presets:
    """Defines the `presets` attribute of the public classes: a fresh dict at each access."""

    def __get__(self, instance, owner):
        return {name: dict(metadata) for name, metadata in presets().items()}
