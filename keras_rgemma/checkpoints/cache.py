"""Measures what lies in the cache of Hugging Face."""

from keras_rgemma.keras_internals.hubs import hugging_face_blobs


def cached_bytes(handle):
    """Returns the number of bytes of a repository in the cache of Hugging Face.

    Args:
        handle: str, `hf://OWNER/NAME`.

    Returns:
        int.
    """
    blobs = hugging_face_blobs(handle.removeprefix("hf://"))
    return sum((blobs / name).stat().st_size for name in names_in(blobs))


def names_in(blobs):
    """Returns the names of the complete files in a folder of the cache, which may not exist."""
    if not blobs.is_dir():
        return set()
    return {path.name for path in blobs.iterdir() if path.suffix != ".incomplete"}
