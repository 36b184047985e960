"""Writes and reads adapter files: A and B of each layer, and the fingerprint of the base."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import h5py
import numpy as np

from keras_rgemma.files import new_file
from keras_rgemma.layers.lora import FACTORS
from keras_rgemma.lora import backbone as lora
from keras_rgemma.state.fingerprint import Fingerprint, fingerprint
from keras_rgemma.types import StrPath

FORMAT = "keras-rgemma LoRA"
VERSION = 1
_SUFFIX = ".lora.h5"
# Weights that no quantization changes, by the last part of their paths.
_NEVER_QUANTIZED = ("a_param", "bias", "scale")


class Adapter(NamedTuple):
    """Holds A and B of one layer.

    Attributes:
        a, b: float32 arrays, [..., rank] and [rank, ...].
        alpha: float; the product of A and B counts alpha / rank times.
    """

    a: np.ndarray
    b: np.ndarray
    alpha: float

    @property
    def rank(self) -> int:
        return len(self.b)


class Base(NamedTuple):
    """Describes the model below an adapter.

    Attributes:
        quantization: str, the quantized layers with their modes and dtypes before; "" for none.
        model: `Fingerprint` of the model.
        never_quantized: `Fingerprint` of the weights that no quantization changes.
    """

    quantization: str
    model: Fingerprint
    never_quantized: Fingerprint

    @classmethod
    def of(cls, backbone: Any) -> Self:
        """Describes the base of a backbone with or without LoRA."""
        layers = [*lora.linear_layers(backbone).values(), backbone.token_embedding]
        return cls(
            # Weights that were rounded to bfloat16 before are rounded to other integers.
            ",".join(
                f"{x.path}:{x.quantization_mode}:{x.variable_dtype}"
                for x in layers
                if x.quantization_mode
            ),
            fingerprint(backbone, lambda name: name not in FACTORS),
            fingerprint(backbone, lambda name: name in _NEVER_QUANTIZED),
        )

    def difference(self, other: Base) -> str:
        """Describes how another base differs, str; empty if adapters of one base fit the other."""
        if self.quantization == other.quantization:
            return self.model.difference(other.model)
        return self.never_quantized.difference(other.never_quantized)


def save(backbone: Any, path: StrPath) -> None:
    """See `RGemmaBackbone.save_lora_weights`."""
    if not str(path).endswith(_SUFFIX):
        raise ValueError(f"The name of an adapter file ends in {_SUFFIX!r}. Received: {path!r}.")
    adapters = adapters_by_path(backbone)
    base = Base.of(backbone)
    with new_file(path) as partial, h5py.File(partial, "w") as file:
        file.attrs["format"], file.attrs["version"] = FORMAT, VERSION
        fingerprints = (base.model, base.never_quantized)
        # Apart from the rest, which the version before reads, too.
        file.attrs["base"] = json.dumps([base.quantization, *(x[:2] for x in fingerprints)])
        file.attrs["checksums"] = json.dumps([x.checksums for x in fingerprints])
        file.attrs["targets"] = json.dumps(list(adapters))
        file.attrs["hash"] = _hash(adapters)
        for path, adapter in adapters.items():
            group = file.create_group(f"layers/{path}")
            group.attrs["rank"], group.attrs["alpha"] = adapter.rank, adapter.alpha
            for name, value in zip(FACTORS, adapter[:2], strict=True):
                group[name] = value


def load(backbone: Any, path: StrPath) -> None:
    """See `RGemmaBackbone.load_lora_weights`."""
    base, adapters = _read(path)
    if reason := base.difference(Base.of(backbone)):
        raise ValueError(
            f"{str(path)!r} is the adapter of another model: {reason}. Load the base that it was "
            "trained on."
        )
    install(backbone, adapters, path)


def adapters_by_path(backbone: Any) -> dict[str, Adapter]:
    """Maps the paths of layers to their `Adapter`s.

    Raises:
        ValueError: LoRA is not enabled.
    """
    layers = lora.checked_layers(backbone)
    return {path: Adapter(*layer.lora_values()) for path, layer in layers.items()}


def install(backbone: Any, adapters: Mapping[str, Adapter], path: StrPath) -> None:
    """Assigns adapters to the layers of a backbone, and enables LoRA if it is not enabled.

    Args:
        backbone: `RGemmaBackbone`, without LoRA or with LoRA of the adapters' layers and ranks.
        adapters: dict of a layer's path to its `Adapter`.
        path: str or path of the file of the adapters, for errors.

    Raises:
        ValueError: the model lacks a layer, a layer has another shape, or LoRA of other ranks or on
            other layers is enabled; nothing has changed then.
    """
    layers = lora.linear_layers(backbone)
    for name, adapter in adapters.items():
        if name not in layers:
            raise ValueError(
                f"{str(path)!r} has LoRA for {name!r}, which this model has not. Load the base "
                "that it was trained on."
            )
        expected = _shapes(layers[name], adapter.rank)
        if (adapter.a.shape, adapter.b.shape) != expected:
            raise ValueError(
                f"{str(path)!r} has LoRA of the shapes {adapter.a.shape} and {adapter.b.shape} for "
                f"{name!r}. Expected: {expected[0]} and {expected[1]}. Load the base that it was "
                "trained on."
            )
    ranks = {name: adapter.rank for name, adapter in adapters.items()}
    enabled = {name: layer.lora_rank for name, layer in lora.lora_layers_by_path(backbone).items()}
    if enabled and enabled != ranks:
        names = sorted({*ranks, *enabled})
        name = next(name for name in names if ranks.get(name) != enabled.get(name))
        raise ValueError(
            f"The model has LoRA of rank {enabled.get(name)} on {name!r}, and {str(path)!r} of "
            f"rank {ranks.get(name)}. Call `disable_lora()` first: the file then brings its own."
        )
    if not enabled:
        lora.add_lora(backbone, {name: (x.rank, x.alpha) for name, x in adapters.items()})
    for name, adapter in adapters.items():
        layers[name].assign_lora(*adapter)


def _shapes(layer: Any, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Computes the shapes of A and B for a layer."""
    *inputs, output = layer.weight_shape
    return (*inputs, rank), (rank, output)


def _read(path: StrPath) -> tuple[Base, dict[str, Adapter]]:
    """Reads the `Base` and the adapters of a file."""
    try:
        with h5py.File(path) as file:
            if file.attrs.get("format") != FORMAT:
                raise ValueError("it is no adapter of keras-rgemma. `save_lora_weights` writes one")
            if file.attrs["version"] != VERSION:
                raise ValueError(
                    f"its format has version {file.attrs['version']}, and this is version "
                    f"{VERSION}: use the keras-rgemma that wrote it, or a newer one"
                )
            quantization, *fingerprints = json.loads(file.attrs["base"])
            checksums = json.loads(file.attrs.get("checksums", '["", ""]'))
            pairs = zip(fingerprints, checksums, strict=True)
            base = Base(quantization, *(Fingerprint(*fields, x) for fields, x in pairs))
            targets = json.loads(file.attrs["targets"])
            adapters = {name: _read_adapter(file[f"layers/{name}"]) for name in targets}
            if file.attrs["hash"] != _hash(adapters):
                raise ValueError("it is damaged. Copy it again")
            return base, adapters
    except FileNotFoundError:
        raise
    except (OSError, LookupError, ValueError, TypeError) as error:
        raise ValueError(f"{str(path)!r} cannot be used: {error}.") from error


def _hash(adapters: Mapping[str, Adapter]) -> str:
    """Hashes adapters; returns a str."""
    digest = hashlib.sha256()
    for name, adapter in adapters.items():
        digest.update(json.dumps([name, adapter.alpha, adapter.a.shape, adapter.b.shape]).encode())
        digest.update(adapter.a.astype("<f4").tobytes() + adapter.b.astype("<f4").tobytes())
    return digest.hexdigest()


def _read_adapter(group: h5py.Group) -> Adapter:
    """Reads the `Adapter` of a group of the file, and checks its numbers."""
    a, b = (group[name][()] for name in FACTORS)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError(f"{group.name!r} holds numbers that are not finite")
    if len(b) != group.attrs["rank"]:
        raise ValueError(f"{group.name!r} says rank {group.attrs['rank']}, but has {len(b)}")
    return Adapter(a, b, float(group.attrs["alpha"]))
