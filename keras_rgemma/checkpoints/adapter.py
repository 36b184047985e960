"""Finds and reads the files of an adapter of Hugging Face PEFT."""

import pathlib

import numpy as np
import safetensors

from keras_rgemma.checkpoints.torch_tensors import TorchTensors
from keras_rgemma.types import StrPath

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PICKLED = "adapter_model.bin"  # of older versions, or with `safe_serialization=False`


def is_adapter(folder: StrPath) -> bool:
    """Checks whether a local folder holds an adapter."""
    return (pathlib.Path(folder) / CONFIG).is_file()


def check_is_adapter(path: StrPath, handle: str | None = None) -> None:
    """Raises an error if a path is no folder of an adapter; the message names adapters inside.

    PEFT writes an adapter that is not called "default" into a folder of its name.

    Args:
        path: str or path.
        handle: str, of the repository that the folder was fetched from; None for a local folder.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the folder holds no adapter.
    """
    folder = pathlib.Path(path)
    if handle is None and not folder.is_dir():
        raise FileNotFoundError(f"{str(path)!r} is no folder. Fetch the adapter first.")
    if is_adapter(folder):
        return
    inside = sorted(file.parent.name for file in folder.glob(f"*/{CONFIG}"))
    way_out = (
        f"It holds the adapters {inside}: choose one with `subfolder={inside[0]!r}`."
        if inside
        else "The folder that PEFT's `save_pretrained` writes is one."
    )
    raise ValueError(f"{(handle or str(path))!r} holds no {CONFIG}, so it is no adapter. {way_out}")


def read_tensors(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the tensors of an adapter, and checks that they are finite.

    Args:
        folder: `pathlib.Path`.

    Returns:
        dict of names to NumPy arrays.

    Raises:
        ValueError: the file of the tensors is missing or broken.
    """
    if not (folder / WEIGHTS).exists() and (folder / PICKLED).exists():
        source = TorchTensors(folder / PICKLED)
        tensors = {name: source.read(name) for name in source.shapes}
        source.close()
    else:
        tensors = _read_safetensors(folder)
    for name, tensor in tensors.items():
        if not np.isfinite(tensor.astype("float32")).all():
            raise ValueError(
                f"The tensor {name!r} in {str(folder)!r} is not finite: the file is broken, or the "
                "training of the adapter diverged. Fetch it again, or train it anew."
            )
    return tensors


def _read_safetensors(folder: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with safetensors.safe_open(folder / WEIGHTS, "np") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(
            f"{WEIGHTS!r} in {str(folder)!r} is missing or broken: {error}. Fetch it again."
        ) from error
