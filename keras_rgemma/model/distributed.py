"""Runs a model under the `keras.distribution` that it was made in."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import keras

from keras_rgemma.checkpoints.names import dimensions_by_path
from keras_rgemma.keras_internals.variables import replicate_unplaced
from keras_rgemma.sharding.checks import check_same_distribution, check_sizes
from keras_rgemma.sharding.layout_map import layout_map

_M = TypeVar("_M")
_P = ParamSpec("_P")
_R = TypeVar("_R")


class Distributed:
    """Mixin for `RGemmaBackbone` that remembers the distribution that its weights lie in."""

    _made_in = None

    @staticmethod
    def get_layout_map(
        device_mesh: keras.distribution.DeviceMesh,
        model_parallel_dim_name: str = "model",
        data_parallel_dim_name: str = "batch",
        *,
        fully_sharded: bool = False,
        sequence_parallel_dim_name: str | None = None,
    ) -> keras.distribution.LayoutMap:
        """Makes the `keras.distribution.LayoutMap` of this architecture, in any size, on JAX.

        Along the model axis are divided: the vocabulary, the inner width of the MLP, the channels
        and the gate blocks of the recurrence, and the query heads, with their LoRA factors, their
        scales in int8 and int4, and their slots in the optimizer. The one key/value head and the
        norms have a copy on each device. Rows of a batch, and states, are divided along the data
        axis. The map also has entries for activations (`activations/BTD`: see `shapes.py` for the
        letters), which keep a step from moving a weight.

        Args:
            device_mesh: `keras.distribution.DeviceMesh`.
            model_parallel_dim_name: str, the axis of the mesh along which weights are divided.
            data_parallel_dim_name: str, the axis along which the rows of a batch are divided.
            fully_sharded: bool, whether weights are divided along the data axis, too. Each device
                then holds less of them, and a step gathers each weight along that axis when it
                needs the weight.
            sequence_parallel_dim_name: str, the axis along which the tokens of a row are divided,
                for rows that are too long for one device; None: each device has whole rows. On an
                axis of its own every layer computes a part of each row, and has a copy of all
                weights that are not divided along the model axis (`fully_sharded` then divides
                them along this axis, not along the data axis). The model axis may be named, too:
                then what lies between the blocks is divided over time, and what is inside of them
                over channels as before.

        Returns:
            `keras.distribution.LayoutMap`.

        Raises:
            TypeError: `device_mesh` is no mesh.
            ValueError: the mesh has no such axis, or devices that are not there. A mesh that does
                not divide the sizes of a model is refused when the model is made.

        Example:
        ```python
        mesh = keras.distribution.DeviceMesh((1, 1), ("batch", "model"))
        layout_map = keras_rgemma.RGemmaBackbone.get_layout_map(mesh)
        keras.distribution.set_distribution(
            keras.distribution.ModelParallel(layout_map=layout_map, batch_dim_name="batch")
        )
        lm = keras_rgemma.RGemmaCausalLM.from_preset("rgemma_tiny_en")
        ```
        """
        return layout_map(
            dimensions_by_path(),
            device_mesh,
            model_parallel_dim_name,
            data_parallel_dim_name,
            fully_sharded,
            sequence_parallel_dim_name,
        )

    def remember_distribution(self) -> None:
        """Remembers the distribution in force, if its mesh divides the sizes of the model."""
        check_sizes(self.config)
        self._made_in = keras.distribution.distribution()

    def distribution_scope(self) -> contextlib.AbstractContextManager[Any]:
        """Returns a context with the distribution that the model was made in.

        Raises:
            ValueError: another distribution is in force.
        """
        check_same_distribution(self._made_in, type(self).__name__)
        return contextlib.nullcontext() if self._made_in is None else self._made_in.scope()


def replicate_rest(task: keras.Model) -> None:
    """Gives all variables of a task that lie nowhere yet a copy on each device of the mesh.

    Args:
        task: `keras.Model` with a backbone.
    """
    with task.backbone.distribution_scope():
        if keras.distribution.distribution() is not None:
            optimizer = getattr(task, "optimizer", None)
            slots = [] if optimizer is None else optimizer.variables
            replicate_unplaced([*task.variables, *slots, *task.metrics_variables])


def in_distribution(method: Callable[Concatenate[_M, _P], _R]) -> Callable[Concatenate[_M, _P], _R]:
    """Decorates a method of a task, such as `fit`: it runs in the `distribution_scope`."""

    @functools.wraps(method)
    def run(self: _M, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        with self.backbone.distribution_scope():
            return method(self, *args, **kwargs)

    return run
