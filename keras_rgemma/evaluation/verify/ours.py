"""Observes this package's model on the fixed texts."""

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_rgemma.backend import tensor_of
from keras_rgemma.evaluation.verify.observation import EMBEDDING, FINAL_NORM
from keras_rgemma.evaluation.verify.texts import Material, Rows
from keras_rgemma.generation.programs import Programs
from keras_rgemma.generation.prompts import pad_right
from keras_rgemma.layers.gated_mlp import GatedMLP
from keras_rgemma.layers.local_attention import LocalAttention
from keras_rgemma.layers.recurrent_block import RecurrentBlock
from keras_rgemma.layers.residual_block import ResidualBlock
from keras_rgemma.model.backbone import RGemmaBackbone
from keras_rgemma.model.causal_lm import RGemmaCausalLM
from keras_rgemma.ops.documents import document_positions
from keras_rgemma.ops.places import places_of
from keras_rgemma.sharding.host import numpy_of

_AFTER_PRODUCTS = ("ffw_down", "linear_out")
_WIRED = (ResidualBlock, RecurrentBlock, LocalAttention, GatedMLP)


def observe(folder: str, dtype: str, material: Material, new_tokens: int) -> dict[str, np.ndarray]:
    """Loads a checkpoint and observes the model.

    Args:
        folder: str, a folder or file as of `RGemmaBackbone.from_folder`.
        dtype: str, of weights and computation.
        material: `Material`.
        new_tokens: int, tokens of each greedy text.

    Returns:
        The arrays of an `Observation`, without logits of greedy texts.
    """
    lm = RGemmaCausalLM(RGemmaBackbone.from_folder(folder, dtype=dtype))
    arrays: dict[str, np.ndarray] = {}
    peaks: dict[str, np.ndarray] = {}
    for name, rows in material.batches.items():
        found = _observe_rows(lm, rows)
        for path, peak in found.pop("peaks").items():
            peaks[f"peaks/{path}"] = np.maximum(peak, peaks.get(f"peaks/{path}", 0))
        arrays |= {f"{name}/{key}": value for key, value in _flat(found).items()}
    return {**arrays, **peaks, **_greedy_texts(lm, material.prompts, new_tokens)}


def _observe_rows(lm: RGemmaCausalLM, rows: Rows) -> dict[str, Any]:
    """Runs all layers over rows; returns nested dicts of NumPy arrays."""
    # A function of its own for each call: programs are kept by their function.
    run = functools.partial(_run, lm.backbone, lm.compute_logits)
    arrays = (rows.token_ids, rows.padding_mask, rows.places)
    results = Programs(lm).compiled(lambda _, *args: run(*args))(*map(tensor_of, arrays))
    return keras.tree.map_structure(_in_float32, results)


def _in_float32(x: Any) -> np.ndarray:
    return numpy_of(ops.cast(x, "float32"))


def _run(
    backbone: RGemmaBackbone, compute_logits: Callable, token_ids: Any, mask: Any, places: Any
) -> dict[str, Any]:
    """Computes what is observed of rows: a function of tensors, to be compiled."""
    layers: dict[str, Any] = {}
    peaks: dict[str, Any] = {}
    is_token = ops.cast(mask > 0, "float32")[:, :, None]

    def at_places(x: Any) -> Any:
        return ops.take(x, places, axis=1)

    def note(path: str, x: Any) -> None:
        peak = ops.max(ops.abs(ops.cast(x, "float32")) * is_token)
        peaks[path] = ops.maximum(peak, peaks[path]) if path in peaks else peak

    def bind(part: Any) -> Any:
        if not isinstance(part, keras.layers.Layer):
            return part
        function = part.bound(bind) if type(part) in _WIRED else part

        def noted(x: Any, *args: Any, **kwargs: Any) -> Any:
            if isinstance(part, ResidualBlock) and not layers:
                layers[EMBEDDING] = at_places(x)
                note(EMBEDDING, x)
            if part.name in _AFTER_PRODUCTS:  # no other part returns what these read
                note(f"the input of {part.path}", x)
            outputs = function(x, *args, **kwargs)
            x = outputs[0] if isinstance(outputs, tuple) else outputs
            if len(x.shape) == 3:
                note(part.path, x)
            if isinstance(part, ResidualBlock):
                layers[str(len(layers) - 1)] = at_places(x)
            return outputs

        return noted

    positions = places_of(document_positions(mask), backbone.rope)
    hidden, states = backbone.bound(bind)(token_ids, positions, None, True)
    layers[FINAL_NORM] = at_places(hidden)
    return {
        "layer": layers,
        "logits": compute_logits(layers[FINAL_NORM]),
        "state": {str(i): state._asdict() for i, state in enumerate(states)},
        "peaks": peaks,
    }


def _flat(tree: dict[str, Any], start: str = "") -> dict[str, np.ndarray]:
    """Joins the keys of nested dicts with slashes."""
    flat = {}
    for key, value in tree.items():
        is_dict = isinstance(value, dict)
        flat |= _flat(value, f"{start}{key}/") if is_dict else {f"{start}{key}": value}
    return flat


def _greedy_texts(
    lm: RGemmaCausalLM, prompts: list[list[int]], new_tokens: int
) -> dict[str, np.ndarray]:
    """Continues prompts through the public `generate`."""
    if not prompts:
        return {}
    rows = [np.array(prompt, "int32") for prompt in prompts]
    lengths = [len(row) for row in rows]
    ids, mask = pad_right(rows, max(lengths))
    lm.compile(sampler="greedy")
    written = lm.generate(
        {"token_ids": ids, "padding_mask": mask}, max_new_tokens=new_tokens, stop_token_ids=None
    )
    written_ids = numpy_of(written["token_ids"])
    return {
        f"greedy/{k}/tokens": written_ids[k, length : length + new_tokens].astype("int32")
        for k, length in enumerate(lengths)
    }
