"""Finds folders and parses handles as the clients of the hubs do."""

import pathlib
from typing import Any


def hugging_face_blobs(name: str) -> pathlib.Path:
    """Returns the folder of a model's files, named after their hashes, in Hugging Face's cache.

    The client's own function for this name lies beside its HTTP library, which is slow to import.

    Args:
        name: str, `OWNER/NAME`.

    Returns:
        `pathlib.Path`, which may not exist.
    """
    from huggingface_hub import constants

    repository = "--".join(["models", *name.split("/")])
    return pathlib.Path(constants.HF_HUB_CACHE) / repository / "blobs"


def parse_kaggle_handle(name: str) -> Any:
    """Parses the handle of a model on Kaggle.

    Args:
        name: str, `OWNER/MODEL/FRAMEWORK/VARIANT`, with `/VERSION` or without.

    Returns:
        `kagglehub.handle.ModelHandle`: attribute `framework`, methods `with_version(int)` and
        `to_url()`, and its own str.

    Raises:
        ValueError: the name is no such handle.
    """
    from kagglehub.handle import parse_model_handle

    return parse_model_handle(name)
