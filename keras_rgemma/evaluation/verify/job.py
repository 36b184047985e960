"""Defines what a process of `verify` has to do."""

from typing import NamedTuple

from keras_rgemma.config import RGemmaConfig
from keras_rgemma.evaluation.verify.texts import Material

_DEVICES = {"recurrentgemma": "jax", "transformers": "torch"}


class Job(NamedTuple):
    """Says what a process has to do.

    Attributes:
        kind: "ours" observes this package's model on the backend of the process; "recurrentgemma"
            and "transformers" observe a reference; "convert" writes the checkpoint into `target`.
        folder: str, the checkpoint.
        dtype: str, of weights and computation.
        config: `RGemmaConfig` of the model that is verified.
        material: `Material`, but for "convert".
        new_tokens: int, of each greedy text.
        needed: int, the bytes to be free before the model is loaded; None checks nothing.
        copies: int, the bytes to be free beside them on a CPU.
        target: str, a new folder, and `format`, str of `choices.FORMATS`, for "convert".
    """

    kind: str
    folder: str
    dtype: str
    config: RGemmaConfig
    material: Material | None = None
    new_tokens: int = 0
    needed: int | None = None
    copies: int = 0
    target: str = ""
    format: str = ""

    @property
    def backend(self) -> str | None:
        """Returns the backend that the process needs, or None for any."""
        return _DEVICES.get(self.kind)
