"""Lowers the programs of a model for the devices of its distribution, with or without weights.

Each function takes `sharding`, where arrays lie without a distribution: None for the devices of
this machine, or `topologies.sharding_of` a chip elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import keras

from keras_rgemma.generation.decode import NO_TOKEN, DecodeState, decode_step
from keras_rgemma.model.causal_lm import RGemmaCausalLM
from keras_rgemma.model.distributed import in_distribution
from keras_rgemma.model.samplers import without_softmax
from keras_rgemma.sharding.activations import layout_of
from keras_rgemma.state.records import ModelState, map_with_letters
from keras_rgemma.types import Tree


def abstract_values(variables: Iterable[keras.Variable]) -> list[jax.ShapeDtypeStruct]:
    """Describes the values of variables with their layouts, and reads none.

    Args:
        variables: list of `keras.Variable`, which may have no values yet.

    Returns:
        A list of `jax.ShapeDtypeStruct`.
    """
    distribution = keras.distribution.distribution()

    def describe(variable: keras.Variable) -> jax.ShapeDtypeStruct:
        layout = distribution and distribution.get_variable_layout(variable).backend_layout
        return jax.ShapeDtypeStruct(tuple(variable.shape), variable.dtype, sharding=layout)

    return [describe(variable) for variable in variables]


def abstract_rows(rows: int, length: int, dtype: str = "int32") -> jax.ShapeDtypeStruct:
    """Describes an array [B, T] whose rows are divided along the data axis."""
    return _described("BT", (rows, length), dtype)


def abstract_state(lm: RGemmaCausalLM, rows: int) -> ModelState:
    """Describes the `ModelState` of rows with its layout."""
    return map_with_letters(
        lambda array, letters: _described(letters, (rows, *array.shape[1:]), array.dtype),
        lm.state_specification(),
    )


@in_distribution
def lower_prefill(
    lm: RGemmaCausalLM, rows: int, length: int, sharding: jax.sharding.Sharding | None = None
) -> jax.stages.Lowered:
    """Lowers the program that consumes tokens of each row.

    Args:
        lm: `RGemmaCausalLM`.
        rows, length: ints, B and T.
        sharding: `jax.sharding.Sharding`, or None.

    Returns:
        `jax.stages.Lowered`.
    """
    ids = abstract_rows(rows, length)
    state = abstract_state(lm, rows)
    consume = lambda ids, mask, state: lm.step(ids, mask, state)[1]  # noqa: E731
    return _lower(lm, consume, ids, ids, state, sharding=sharding)


@in_distribution
def lower_decode(
    lm: RGemmaCausalLM, rows: int, sharding: jax.sharding.Sharding | None = None
) -> jax.stages.Lowered:
    """Lowers the program that writes one token a row with the sampler of `compile`.

    Args:
        lm: `RGemmaCausalLM`.
        rows: int, B.
        sharding: `jax.sharding.Sharding`, or None.

    Returns:
        `jax.stages.Lowered`.
    """
    per_row = lambda dtype: _described("B", (rows,), dtype)  # noqa: E731
    last, ended, budgets = map(per_row, ("int32", "bool", "int32"))
    seeds = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in lm.sampler.variables)
    state = DecodeState(last, ended, budgets, abstract_state(lm, rows), seeds)
    sampler = without_softmax(lm.sampler)

    def write(state: DecodeState) -> Any:
        stops = jax.numpy.full((4,), NO_TOKEN, "int32")
        return decode_step(lm, sampler, stops, state, all_active=rows == 1)

    return _lower(lm, write, state, sharding=sharding)


@in_distribution
def lower_train_step(
    lm: RGemmaCausalLM, rows: int, length: int, sharding: jax.sharding.Sharding | None = None
) -> jax.stages.Lowered:
    """Lowers a training step of a compiled model.

    Args:
        lm: `RGemmaCausalLM` whose optimizer is built.
        rows, length: ints, B and T.
        sharding: `jax.sharding.Sharding`, or None.

    Returns:
        `jax.stages.Lowered`.
    """
    ids = abstract_rows(rows, length)
    data = {"token_ids": ids, "padding_mask": ids}, ids, abstract_rows(rows, length, "float32")
    parts = (
        lm.trainable_variables,
        lm.non_trainable_variables,
        lm.optimizer.variables,
        lm.metrics_variables,
    )
    state = tuple(map(abstract_values, parts))
    shardings = jax.tree.map(lambda x: x.sharding, state[:-1])
    # The first step makes variables of metrics that are not there yet.
    out_shardings = None, (*shardings, None)
    step = jax.jit(lm.train_step, out_shardings=out_shardings, donate_argnums=0)
    return _lowered(step, state, data, sharding=sharding)


def _described(letters: str, shape: tuple[int, ...], dtype: str) -> jax.ShapeDtypeStruct:
    layout = layout_of(letters, shape)
    sharding = None if layout is None else layout.backend_layout
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def _lower(
    lm: RGemmaCausalLM,
    function: Callable[..., Any],
    *args: Any,
    sharding: jax.sharding.Sharding | None,
) -> jax.stages.Lowered:
    variables = lm.variables

    def program(values: Sequence[jax.Array], *args: Any) -> Any:
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            return function(*args)

    return _lowered(jax.jit(program), abstract_values(variables), *args, sharding=sharding)


def _lowered(jitted: Any, *args: Any, sharding: jax.sharding.Sharding | None) -> jax.stages.Lowered:
    """Lowers a function for the devices that its arrays lie on, which may be elsewhere."""
    distribution, devices = keras.distribution.distribution(), set()
    if distribution is not None:
        devices = set(distribution.device_mesh.backend_mesh.devices.flat)
    elif sharding is not None:
        devices, args = sharding.device_set, _placed(args, sharding)
    names = {"gpu": "cuda"}
    platforms = tuple({names.get(x.platform, x.platform) for x in devices}) or None
    return jitted.trace(*args).lower(lowering_platforms=platforms)


def _placed(tree: Tree, sharding: jax.sharding.Sharding) -> Tree:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
