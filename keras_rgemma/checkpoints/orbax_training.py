"""Restores checkpoints of `keras.callbacks.OrbaxCheckpoint`, onto any mesh.

Keras finds the variables of a checkpoint by their paths. Of an optimizer they begin with its name,
which counts the optimizers of a process ("sgd_1"), and what Keras does not find it leaves as it is.
Here the number does not matter, and every variable must be found.
"""

import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras

from keras_rgemma.backend import backend_module
from keras_rgemma.checkpoints.loading import differences
from keras_rgemma.types import StrPath, Tree

_WEIGHTS = ("trainable_variables", "non_trainable_variables")
_OPTIMIZER = "optimizer_variables"


def is_checkpoint(path: StrPath) -> bool:
    """Returns whether a path is a local folder that `OrbaxCheckpoint` wrote."""
    path = pathlib.Path(path)
    return "://" not in str(path) and path.is_dir() and _last_step(path) is not None


def _last_step(path: pathlib.Path) -> pathlib.Path | None:
    """Returns the folder of the last complete checkpoint in a folder, or None."""
    if (path / "pytree").is_dir():
        return path
    steps = [x for x in path.iterdir() if x.name.isdecimal() and (x / "pytree").is_dir()]
    return max(steps, key=lambda x: int(x.name), default=None)


def restore(model: keras.Model, path: StrPath) -> None:
    """Gives a model, and its optimizer if it is compiled, their values of a checkpoint.

    On JAX each device reads its part, whatever mesh the checkpoint was written on.

    Args:
        model: `keras.Model`.
        path: str or path of the callback's folder, or of one step in it.

    Raises:
        ValueError: the checkpoint is of another model or optimizer; nothing has changed then.
    """
    from orbax.checkpoint import v1 as ocp

    step = _last_step(pathlib.Path(path).resolve())
    saved = ocp.pytree_metadata(step, checkpointable_name="pytree").metadata
    variables = _matched(model, saved)
    if keras.config.backend() == "jax":
        describe = backend_module("keras_rgemma.sharding").describe
        default = next(iter(variables.values()))  # metrics lie anywhere: nobody takes them
        saved = _map(lambda key, meta: describe(meta, variables.get(key, default)), saved)
    loaded = ocp.load_checkpointables(step, {"pytree": saved})["pytree"]
    _assign(variables, loaded)


def assign(model: keras.Model, tree: Mapping[str, Any]) -> None:
    """Gives a model, and its optimizer if it is compiled, the values of a tree.

    Args:
        model: `keras.Model`.
        tree: dict, as of `keras.Model.get_state_tree`.

    Raises:
        ValueError: the tree is of another model or optimizer; nothing has changed then.
    """
    _assign(_matched(model, tree), tree)


def _assign(variables: Mapping[tuple[str, ...], keras.Variable], tree: Tree) -> None:
    values = dict(_flat(tree))
    for key, variable in variables.items():
        variable.assign(values[key])


def _matched(model: keras.Model, tree: Tree) -> dict[tuple[str, ...], keras.Variable]:
    """Maps the keys of a tree to the variables that take their values.

    Args:
        model: `keras.Model`; an optimizer that is not built is built if the tree has its slots.
        tree: dict of the parts of a model to dicts, whose leaves have `shape`.

    Returns:
        dict of tuples of str to `keras.Variable`.
    """
    leaves = dict(_flat(tree))
    shapes = {key: tuple(getattr(leaf, "shape", ())) for key, leaf in leaves.items()}
    weights = {key: "/".join(key[1:]) for key in leaves if key[0] in _WEIGHTS}
    matched = _pairs(weights, {x.path: x for x in model.variables}, shapes, "weights")
    optimizer = getattr(model, "optimizer", None)
    slots = {key: _unnumbered(key[1:]) for key in leaves if key[0] == _OPTIMIZER}
    if optimizer is not None and slots:
        if not optimizer.built and len(slots) > len(optimizer.variables):
            optimizer.build(model.trainable_variables)
        own = {_unnumbered(x.path.split("/")): x for x in optimizer.variables}
        matched |= _pairs(slots, own, shapes, "variables of the optimizer")
    return matched


def _pairs(
    names: Mapping[tuple[str, ...], str],
    variables: Mapping[str, keras.Variable],
    shapes: Mapping[tuple[str, ...], tuple[int, ...]],
    kind: str,
) -> dict[tuple[str, ...], keras.Variable]:
    """Maps keys to variables of the same name and shape.

    Raises:
        ValueError: some have no partner.
    """
    expected = {name: tuple(variable.shape) for name, variable in variables.items()}
    found = {name: shapes[key] for key, name in names.items()}
    if faults := differences(expected, found):
        raise ValueError(
            f"The checkpoint does not fit the {kind} of this model: {faults}. Make the "
            "model as it was when it was saved (sizes, `enable_lora`, `quantize`), and compile it "
            "with an optimizer of the same class and arguments."
        )
    return {key: variables[name] for key, name in names.items()}


def _unnumbered(path: Sequence[str]) -> str:
    """Joins a path, without the number at the end of its first part."""
    first, *rest = path
    return "/".join([re.sub(r"_\d+$", "", first), *rest])


def _flat(tree: Tree, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yields the leaves of nested dicts with their keys."""
    if not isinstance(tree, dict):
        yield path, tree
        return
    for name, part in tree.items():
        yield from _flat(part, *path, name)


def _map(function: Callable[[tuple[str, ...], Any], Any], tree: Tree, *path: str) -> Any:
    """Replaces the leaves of nested dicts by a function of their keys and the leaf."""
    if not isinstance(tree, dict):
        return function(path, tree)
    return {name: _map(function, part, *path, name) for name, part in tree.items()}
