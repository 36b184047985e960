"""The built-in presets: what there is, where it lies, and how a name becomes a folder."""

import difflib
import functools
import json
import pathlib

_PACKAGE = pathlib.Path(__file__).resolve().parent.parent
# In a wheel the presets lie inside the package, in a checkout beside it.
_ROOTS = (_PACKAGE / "presets", _PACKAGE.parent / "presets")


@functools.cache
def presets():
    """The metadata of all presets by name, in the order of their size.

    Returns:
        dict of name to a dict with `description` (str), `parameter_count` (int), `path` (str, the
        folder of its configs), `weights` (where they come from: "embedded", the handle of a hub
        repository, or None when none were ever published).
    """
    root = next((root for root in _ROOTS if root.is_dir()), None)
    if root is None:
        raise FileNotFoundError(
            f"The folder of the presets is missing; looked for {[str(r) for r in _ROOTS]}. "
            "Install keras-rgemma again."
        )
    found = []
    for path in root.glob("*/metadata.json"):
        metadata = json.loads(path.read_text(encoding="utf-8"))
        found.append(
            (
                path.parent.name,
                {
                    "description": metadata["description"],
                    "parameter_count": metadata["parameter_count"],
                    "path": str(path.parent),
                    "weights": metadata["weights"],
                },
            )
        )
    return dict(sorted(found, key=lambda item: (item[1]["parameter_count"], item[0])))


def resolve(preset, load_weights):
    """The folder of a built-in preset; whatever else was given, unchanged.

    Raises:
        ValueError: nothing has this name, or `load_weights` where there are none to load.
    """
    if not isinstance(preset, (str, pathlib.PurePath)):
        raise TypeError(
            "A preset is a name, a folder or a hub handle: a str or a path. Received: "
            f"{preset!r}. The built-in names are {list(presets())}."
        )
    preset = str(preset)
    known = presets()
    if preset in known:
        if load_weights:
            _check_weights(preset, known[preset]["weights"])
        return known[preset]["path"]
    if "://" in preset or (preset.strip() and pathlib.Path(preset).exists()):
        return preset
    near = difflib.get_close_matches(preset, known, n=1, cutoff=0.0)[0]
    raise ValueError(
        f"Unknown preset {preset!r}. Did you mean {near!r}? The built-in presets are "
        f"{list(known)}; a folder (this one does not exist) or a hub handle such as "
        "'hf://user/model' works, too."
    )


def _check_weights(preset, weights):
    if weights == "embedded":
        return
    if weights is None:
        raise ValueError(
            f"The preset {preset!r} has no public weights: it is an architecture from the paper. "
            "Pass `load_weights=False` for a randomly initialised model."
        )
    raise ValueError(
        f"The weights of {preset!r} are published at {weights!r}, from where this version of "
        "keras-rgemma does not fetch them yet. Download that repository and pass its folder, or "
        "pass `load_weights=False` for a randomly initialised model of this architecture."
    )


def resolve_tokenizer(preset, class_name):
    """The folder of a preset that something without weights is loaded from.

    Raises:
        ValueError: nothing has this name, or it is a built-in preset without a tokenizer.
    """
    folder = resolve(preset, load_weights=False)
    if preset in presets() and not has_tokenizer(folder):
        raise ValueError(
            f"The preset {preset!r} comes without a tokenizer. Create {class_name} from a "
            "SentencePiece file, or use 'rgemma_tiny_en'."
        )
    return folder


def has_tokenizer(folder):
    """Whether a local preset folder holds a tokenizer."""
    return (pathlib.Path(folder) / "tokenizer.json").exists()


class Presets:
    """The `presets` attribute of the public classes: a fresh dict at each access."""

    def __get__(self, instance, owner):
        return {name: dict(metadata) for name, metadata in presets().items()}
