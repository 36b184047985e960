"""Defines what is observed of a model, and keeps it in a file between two processes."""

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

EMBEDDING, FINAL_NORM = "embedding", "final_norm"


class Observation(NamedTuple):
    """Holds what an implementation computed.

    Attributes:
        arrays: mapping of a name to a NumPy array:
            `BATCH/layer/N`, float32 [B, P, D], with N a number, "embedding" or "final_norm";
            `BATCH/logits`, float32 [B, P, V];
            `BATCH/state/N/FIELD`, float32, a field of the state of layer N;
            `greedy/K/tokens`, int32 [N], and `greedy/K/logits`, float32 [N, V], of prompt K;
            `tokens/K`, int32, the ids of text K;
            `peaks/PATH`, float32 (), the largest absolute activation at a layer's path.
        about: dict of JSON types: versions, device, dtype.
    """

    arrays: Mapping[str, np.ndarray]
    about: dict[str, str]

    def names(self, *parts: str) -> Iterator[str]:
        """Yields the names that begin with these parts."""
        start = "/".join(parts) + "/"
        return (name for name in self.arrays if name.startswith(start))


def write(path: pathlib.Path, observation: Observation) -> None:
    """Writes an observation into a file of NumPy arrays."""
    about = np.frombuffer(json.dumps(observation.about).encode(), "uint8")
    np.savez(path, about=about, **observation.arrays)


def read(path: pathlib.Path) -> Observation:
    """Reads an observation; its arrays are read when they are asked for."""
    file = np.load(path)
    about = json.loads(file["about"].tobytes())
    return Observation(file, about)


def in_float32(x: np.ndarray) -> np.ndarray:
    """Converts a NumPy array of any float dtype to float32."""
    return np.asarray(x).astype("float32")
