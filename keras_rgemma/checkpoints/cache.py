"""Measures and checks what lies in the cache of Hugging Face."""

import hashlib
import os
import pathlib

from keras_rgemma.keras_internals.hubs import hugging_face_blobs

_CHECKED = ".keras_rgemma_checked"
_BLOCK = 1 << 24  # bytes hashed in one go


def cached_bytes(handle: str) -> int:
    """Returns the number of bytes of a repository in the cache of Hugging Face.

    Args:
        handle: str, `hf://OWNER/NAME`.

    Returns:
        int.
    """
    blobs = hugging_face_blobs(handle.removeprefix("hf://"))
    return sum((blobs / name).stat().st_size for name in names_in(blobs))


def names_in(blobs: pathlib.Path) -> set[str]:
    """Returns the names of the complete files in a folder of the cache, which may not exist."""
    if not blobs.is_dir():
        return set()
    return {path.name for path in blobs.iterdir() if path.suffix != ".incomplete"}


def check_new_files(handle: str, blobs: pathlib.Path) -> None:
    """Compares each file that has come with the hash that it is named after, once.

    The client compares sizes alone, and files of Xet storage have come whole in size and other in
    content, too (huggingface_hub#3643). Files that were compared are listed beside them: later
    loads read nothing again, and a call that was stopped in between leaves nothing unchecked.
    Where there are no symbolic links the cache has no such files.
    """
    listed = blobs.parent / _CHECKED
    checked = set(listed.read_text().split()) if listed.is_file() else set()
    new = names_in(blobs) - checked
    if not new or not os.access(blobs, os.W_OK):
        return
    damaged = [name for name in new if _hash_like(blobs / name) != name]
    links = [link for link in blobs.parent.rglob("snapshots/**/*") if link.is_symlink()]
    links = [link for link in links if link.resolve().name in damaged]
    for path in (*links, *(blobs / name for name in damaged)):
        path.unlink()
    listed.write_text("\n".join(sorted(names_in(blobs))))
    if damaged:
        raise ValueError(
            f"{sorted({link.name for link in links})} of {handle!r} came damaged: the hash is not "
            "the one that the hub names. It was deleted. Run this again to fetch it anew."
        )


def _hash_like(blob: pathlib.Path) -> str:
    """Computes the hash of a file in the kind of its name: SHA-256, or Git's hash of a blob."""
    digest = hashlib.sha256()
    if len(blob.name) == 40:
        digest = hashlib.sha1(f"blob {blob.stat().st_size}\0".encode())
    with blob.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
