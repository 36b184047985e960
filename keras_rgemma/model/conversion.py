"""Converts a checkpoint from one format into another."""

import pathlib

from keras_rgemma.checkpoints import export
from keras_rgemma.checkpoints.folder import open_checkpoint
from keras_rgemma.checkpoints.hub import WEIGHTS
from keras_rgemma.checkpoints.presets import resolve_model, saved_dtype
from keras_rgemma.files import check_free, new_folder
from keras_rgemma.model.causal_lm import RGemmaCausalLM


def convert(
    source: str,
    destination: str,
    to: str,
    revision: str | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
) -> str:
    """Writes a checkpoint in a format into a folder that gets its name when it is complete.

    Args:
        source: str, a preset, folder or handle, as of `RGemmaCausalLM.from_preset`.
        destination: str, the folder.
        to: str of `choices.FORMATS`.
        revision: str, of a source on a hub.
        dtype: str of `choices.DTYPES`; None for the dtype of the source.
        overwrite: bool, whether to replace the checkpoint that is there.

    Returns:
        str, the dtype of the weights that were written.

    Raises:
        FileExistsError: the folder is not empty.
        ValueError: the destination holds the source, or the source has no dtype that can be
            written. See `RGemmaCausalLM.from_preset` and `export.export`, too.
    """
    check_free(destination, overwrite)
    if pathlib.Path(destination).resolve() in pathlib.Path(source).resolve().parents:
        raise ValueError(
            f"The destination {destination!r} is a folder around the source {source!r}. "
            "Choose another place."
        )
    base, _ = resolve_model(source, WEIGHTS, revision)  # of an adapter its base
    checkpoint = open_checkpoint(base)
    dtype = dtype or (checkpoint.dtype if checkpoint else saved_dtype(base))
    if dtype is not None and dtype not in export.DTYPES:
        raise ValueError(
            f"The weights are {dtype}, which is not written. Pass --dtype, one of "
            f"{list(export.DTYPES)}."
        )
    lm = RGemmaCausalLM.from_preset(source, revision=revision, dtype=dtype)
    if to == "keras":
        with new_folder(destination, overwrite) as folder:
            lm.save_to_preset(folder)
    else:
        tokenizer = getattr(lm.preprocessor, "tokenizer", None)
        export.export(lm.backbone, tokenizer, destination, to, dtype, overwrite)
    return lm.dtype_policy.variable_dtype
