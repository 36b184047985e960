"""Names tensors of Hugging Face as they are without what was wrapped around the model."""

import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np

# Names of the wrappers of PyTorch's DataParallel and of PEFT, in front of the model's own.
_PREFIXES = ("module.", "base_model.model.")
# Those of `torch.compile`, FSDP and activation checkpointing, around any module inside.
_ANYWHERE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
# A `RecurrentGemmaModel` begins here, which a model with a head calls `model`.
_BARE, _ROOT = ("embed_tokens.", "layers.", "final_norm."), "model."
_VALUE_HEAD = "v_head."  # of TRL, beside the model
# Parts of the names of what PEFT trains, which the model's own weights lack.
_PEFT = (".lora_", ".base_layer.", ".modules_to_save.", ".original_module.")
_LISTED = 3  # names in one error


class Unwrapped:
    """Reads the tensors of a source under the names of `RecurrentGemmaForCausalLM`.

    A `TensorSource`. A value head is left out, with a warning.

    Args:
        source: `TensorSource` of the format "huggingface".

    Raises:
        ValueError: two tensors get the same name, or an adapter of PEFT is among the tensors.
    """

    format = "huggingface"
    copies: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, np.dtype]

    def __init__(self, source: Any) -> None:
        self.copies = source.copies
        self._source, self._names = source, {}
        heads = []
        for name in source.shapes:
            own = _own_name(name)
            if own.startswith(_VALUE_HEAD):
                heads.append(name)
            elif own in self._names:
                raise ValueError(
                    f"The tensors {self._names[own]!r} and {name!r} are the same weight {own!r}. "
                    "Delete one of them."
                )
            else:
                self._names[own] = name
        _check_no_adapter(source.shapes)
        if heads:
            warnings.warn(
                f"The value head of TRL is not loaded: {sorted(heads)}. It is no part of a "
                "language model.",
                stacklevel=2,
            )
        self.shapes = {own: source.shapes[name] for own, name in self._names.items()}
        self.dtypes = {own: source.dtypes[name] for own, name in self._names.items()}

    def read(self, name: str, **rows: slice) -> np.ndarray:
        """Reads a tensor: see `TensorSource.read`."""
        return self._source.read(self._names[name], **rows)


def _own_name(name: str) -> str:
    """Returns the name of a tensor without the names of wrappers."""
    for wrapper in _ANYWHERE:
        name = name.replace(wrapper, "")
    while prefix := next((x for x in _PREFIXES if name.startswith(x)), None):
        name = name.removeprefix(prefix)
    return _ROOT + name if name.startswith(_BARE) else name


def _check_no_adapter(names: Iterable[str]) -> None:
    """Raises ValueError if tensors are those of PEFT before its adapter is merged."""
    found = [name for name in names if any(part in name for part in _PEFT)]
    if found:
        raise ValueError(
            f"The weights hold {len(found)} tensors of an adapter that is not merged, such as "
            f"{sorted(found)[:_LISTED]}. With PEFT, write the whole model by "
            "`model.merge_and_unload().save_pretrained(folder)` and load that folder; or write the "
            "adapter alone by `model.save_pretrained(folder)` and load it onto its base with "
            "`load_from_peft(folder)`."
        )
