"""Compares what two implementations computed, layer by layer."""

from typing import Any, NamedTuple

import numpy as np

from keras_rgemma.evaluation.verify.observation import EMBEDDING, FINAL_NORM, Observation
from keras_rgemma.evaluation.verify.texts import Material, Rows

LOGITS = "logits"
# The largest difference of two right implementations at a layer, as a part of the root mean square
# of the layer's activations at that token; of keys and values, as a part of their largest feature;
# of logits greater than 1, as a part of the logit.
#
# Each product rounds its result to a part of 6e-8 (float32), 4e-3 (bfloat16) or 5e-4 (float16), and
# the two implementations add up products in different orders. The differences of the layers before
# are handed on, so they grow with the square root of the layers, and the largest of thousands of
# features is some five times the usual one. With random weights at most 1e-5 was measured in
# float32, and 2e-4 of keys: position 2112 in float32 is an angle that is right to 1e-4, which the
# rotation hands on. In bfloat16 it was 0.2, and 0.4 of states. Published weights have larger
# outliers, so the tolerances are wider, that of float32 still below one rounding to bfloat16.
TOLERANCES = {"float32": 1e-3, "bfloat16": 1.0, "float16": 0.2}


class Difference(NamedTuple):
    """Holds how far two implementations are apart at a layer.

    Attributes:
        name: str, the path of the layer, such as "block_3".
        place: str, how the verdict names the layer, such as "layer 3 (block_3, recurrent)".
        output: float, the largest difference of its output, as of `TOLERANCES`.
        state: float, the same of its state; None for a layer without one.
    """

    name: str
    place: str
    output: float
    state: float | None


class Comparison(NamedTuple):
    """Holds how an observation differs from the reference's.

    Attributes:
        layers: list of `Difference`, in the order in which a text passes the layers.
        texts: dict of the name of a row to the largest difference of its logits.
        tokens: list of str, the texts that both tokenize differently.
        greedy: list of dict, one a prompt: "equal", bool; "at", the first token that differs or
            None; "gap", the difference of the two logits there in the reference.
        tolerance: float.
    """

    layers: list[Difference]
    texts: dict[str, float]
    tokens: list[str]
    greedy: list[dict[str, Any]]
    tolerance: float

    @property
    def first(self) -> Difference | None:
        """Returns the first layer with a difference above the tolerance, or None."""
        for layer in self.layers:
            if not (layer.output <= self.tolerance and (layer.state or 0) <= self.tolerance):
                return layer
        return None

    @property
    def verdict(self) -> str:
        """Returns "equal", or what differs first, str."""
        if self.tokens:
            return f"different: first at the tokenizer, in {self.tokens[0]!r}"
        if self.first:
            return f"different: first at {self.first.place}"
        if wrong := [k for k, text in enumerate(self.greedy) if not text["equal"]]:
            text = self.greedy[wrong[0]]
            return f"different: greedy text {wrong[0]}, first at its token {text['at']}"
        return "equal"


def compare(
    ours: Observation,
    reference: Observation,
    material: Material,
    layer_types: tuple[str, ...],
    dtype: str,
) -> Comparison:
    """Compares an observation of this package's model with one of the reference.

    Where the reference has fewer rows or tokens, they are the first ones.

    Args:
        ours, reference: `Observation`.
        material: `Material` that both were made of.
        layer_types: tuple of str, "recurrent" or "attention".
        dtype: str, a key of `TOLERANCES`.

    Returns:
        `Comparison`.
    """
    outputs: dict[str, float] = {}
    states: dict[str, float] = {}
    texts: dict[str, float] = {}
    for batch, rows in material.batches.items():
        for name in reference.names(batch, "layer"):
            error = _activations(ours.arrays[name], reference.arrays[name], rows)
            layer = name.split("/")[2]
            outputs[layer] = _largest(outputs.get(layer, 0.0), error)
        errors = _logits(ours.arrays[f"{batch}/logits"], reference.arrays[f"{batch}/logits"], rows)
        texts |= dict(zip(rows.names, errors, strict=False))
        for name in reference.names(batch, "state"):
            error = _state(name, ours.arrays[name], reference.arrays[name], rows)
            layer = name.split("/")[2]
            states[layer] = _largest(states.get(layer, 0.0), error)
    layers = [
        Difference("token_embedding", "the embedding (token_embedding)", outputs[EMBEDDING], None)
    ]
    for i, layer_type in enumerate(layer_types):
        place = f"layer {i} (block_{i}, {layer_type})"
        layers.append(Difference(f"block_{i}", place, outputs[str(i)], states.get(str(i))))
    norm = f"the norm after the last layer ({FINAL_NORM})"
    layers.append(Difference(FINAL_NORM, norm, outputs[FINAL_NORM], None))
    head = "the logits (token_embedding as the output, and the soft cap)"
    layers.append(Difference(LOGITS, head, _largest(*texts.values()), None))
    tolerance = TOLERANCES[dtype]
    return Comparison(
        layers,
        texts,
        [
            text
            for k, text in enumerate(material.texts)
            if f"tokens/{k}" in reference.arrays
            and reference.arrays[f"tokens/{k}"].tolist() != material.tokens[k]
        ],
        [_greedy(ours, reference, f"greedy/{k}", tolerance) for k in range(len(material.prompts))],
        tolerance,
    )


def _largest(*errors: float) -> float:
    """Returns the largest of numbers; NaN, which compares with nothing, is larger than all."""
    return float(np.max([np.inf if np.isnan(error) else error for error in errors]))


def _activations(ours: np.ndarray, theirs: np.ndarray, rows: Rows) -> float:
    """Computes the largest difference [B, P, D] at tokens, as a part of the token's rms."""
    is_token = _is_token(rows, theirs)
    ours = ours[: theirs.shape[0], : theirs.shape[1]][is_token]
    return _relative(ours, theirs[is_token])


def _logits(ours: np.ndarray, theirs: np.ndarray, rows: Rows) -> list[float]:
    """Computes the largest difference of logits [B, P, V] of each row."""
    errors = []
    for row, is_token in enumerate(_is_token(rows, theirs)):
        expected = theirs[row][is_token]
        difference = np.abs(ours[row, : theirs.shape[1]][is_token] - expected)
        errors.append(_largest((difference / np.maximum(1.0, np.abs(expected))).max()))
    return errors


def _is_token(rows: Rows, theirs: np.ndarray) -> np.ndarray:
    return rows.padding_mask[: theirs.shape[0], rows.places[: theirs.shape[1]]] > 0


def _state(name: str, ours: np.ndarray, theirs: np.ndarray, rows: Rows) -> float:
    """Computes the largest difference of an array of a state."""
    lengths = rows.positions()[:, -1] + 1  # tokens of the last document
    errors = []
    for row, length in enumerate(lengths):
        x, y, largest = ours[row], theirs[row], False
        if name.endswith(("/keys", "/values")):
            window = len(y)  # the key of position p is in slot p % W
            slots = np.arange(max(0, length - window), length) % window
            # An error of an angle moves a feature by a part of the one that it turns with.
            x, y, largest = x[slots], y[slots], True
        elif name.endswith("/conv"):
            x, y = x[-length:], y[-length:]  # the inputs before the document are zeros or unread
        count = 1 if x.ndim == 1 else len(x)
        errors.append(_relative(x.reshape(count, -1), y.reshape(count, -1), largest))
    return _largest(*errors)


def _relative(ours: np.ndarray, theirs: np.ndarray, largest: bool = False) -> float:
    """Computes the largest difference of vectors [N, D], as a part of the size of the vector.

    The size is the root mean square of its features, or with `largest` their largest.
    """
    powers = np.square(theirs, dtype="float64")
    size = np.sqrt((np.max if largest else np.mean)(powers, axis=-1, keepdims=True))
    return _largest((np.abs(ours - theirs) / np.maximum(size, 1e-20)).max())


def _greedy(
    ours: Observation, reference: Observation, name: str, tolerance: float
) -> dict[str, Any]:
    """Compares a greedy text; where the logits of two tokens are a tie, both are right."""
    x, y = (observation.arrays[f"{name}/tokens"] for observation in (ours, reference))
    (differs,) = np.nonzero(x[: len(y)] != y)
    if not len(differs):
        return {"equal": True, "at": None, "gap": None}
    at = int(differs[0])
    logits = reference.arrays[f"{name}/logits"][at]
    top = float(logits[y[at]])
    gap = top - float(logits[x[at]])
    return {"equal": gap <= 2 * tolerance * max(1.0, abs(top)), "at": at, "gap": gap}
