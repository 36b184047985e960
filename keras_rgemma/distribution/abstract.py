"""Makes models without values for devices that are not there."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import keras
import numpy as np

from keras_rgemma.checkpoints.loading import build_uninitialized
from keras_rgemma.checkpoints.rounding import Rounding
from keras_rgemma.config import RGemmaConfig
from keras_rgemma.keras_internals.distribution import Distribution
from keras_rgemma.keras_internals.jax import mesh_of
from keras_rgemma.keras_internals.layers import small_collections
from keras_rgemma.keras_internals.variables import set_layout
from keras_rgemma.model.backbone import RGemmaBackbone
from keras_rgemma.model.causal_lm import RGemmaCausalLM

AXES = ("batch", "model")


def distribution_over(
    chips: Sequence[Any],
    shape: tuple[int, ...],
    axes: tuple[str, ...] = AXES,
    **options: Any,
) -> keras.distribution.ModelParallel:
    """Makes the distribution of a model over chips.

    Args:
        chips: list of `jax.Device`, in the order of the mesh.
        shape: tuple of ints, devices along the axes.
        axes: tuple of str, "batch" and "model" among them.
        **options: of `RGemmaBackbone.get_layout_map`.

    Returns:
        `keras.distribution.ModelParallel`.
    """
    mesh = mesh_of(jax.sharding.Mesh(np.reshape(chips, shape), axes))
    layouts = RGemmaBackbone.get_layout_map(mesh, **options)
    return keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name=AXES[0])


def abstract_model(
    config: Mapping[str, Any],
    dtype: str,
    distribution: Distribution | None = None,
    *,
    quantize: str | None = None,
    rank: int | None = None,
    optimizer: keras.Optimizer | None = None,
    **sizes: Any,
) -> RGemmaCausalLM:
    """Makes a model whose variables have shapes, dtypes and layouts, but no values.

    Args:
        config: dict of the fields of `RGemmaConfig`.
        dtype: str, a dtype policy.
        distribution: `keras.distribution.Distribution`, or None.
        quantize: "int8", "int4" or None, to which weights are rounded.
        rank: int, of LoRA on every linear layer, or None.
        optimizer: `keras.optimizers.Optimizer`, or None for a model that only generates.
        **sizes: fields that replace those of `config`.

    Returns:
        `RGemmaCausalLM` without a preprocessor, whose optimizer is built.
    """
    config = RGemmaConfig(**{**config, **sizes})

    def plain(**kwargs: Any) -> RGemmaBackbone:
        return RGemmaBackbone(**config.to_dict(), **kwargs)

    def backbone() -> RGemmaBackbone:
        model = Rounding(quantize, dtype).make(config, plain) if quantize else plain(dtype=dtype)
        if rank:
            model.enable_lora(rank)
        return model

    with small_collections():
        with distribution.scope() if distribution else contextlib.nullcontext():
            model = build_uninitialized(backbone)
            _lay_out(model.variables)  # as their values would; slots lie as their weights
        # Counters and rates of an optimizer get their values at once, which no chip can hold that
        # is not there: programs lay them out by their paths.
        lm = RGemmaCausalLM(model, preprocessor=None)
        lm.compile(sampler="greedy", **({"optimizer": optimizer} if optimizer else {}))
        if optimizer:
            build_uninitialized(lambda: lm.optimizer.build(lm.trainable_variables))
    return lm


def _lay_out(variables: Sequence[keras.Variable]) -> None:
    distribution = keras.distribution.distribution()
    if distribution is not None:
        for variable in variables:
            set_layout(variable, distribution.get_variable_layout(variable))
