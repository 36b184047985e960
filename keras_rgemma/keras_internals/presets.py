"""Reads the files of a Keras preset."""

from typing import Any

from keras_hub.src.utils.preset_utils import CONFIG_FILE, load_json


def preset_config(preset: str) -> dict[str, Any]:
    """Reads the `config.json` of a Keras preset, a dict.

    Args:
        preset: str, a folder or the handle of a hub.
    """
    return load_json(preset, CONFIG_FILE)
