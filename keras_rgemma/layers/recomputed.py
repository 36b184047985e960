"""Lets layers that take more than tensors recompute their activations in `keras.RematScope`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_rgemma.backend import keep_choices
from keras_rgemma.types import Tensor


class Recomputed:
    """Mixin for a `keras.layers.Layer` that may be made inside of `keras.RematScope`.

    List it before the Keras class. Keras would hand all arguments of a call to the backend, which
    takes flags for tensors (JAX) or knows no keywords (TensorFlow). Here only tensors of
    floating-point numbers are arguments, and the call sees the others around it.
    """

    def rematerialized_call(
        self, layer_call: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Callable[..., Any]:
        arguments = keras.tree.flatten((args, kwargs))
        places = [i for i, x in enumerate(arguments) if _is_differentiable(x)]
        if not places:
            return layer_call

        def call(*tensors: Tensor) -> Any:
            replaced = dict(zip(places, tensors, strict=True))
            flat = [replaced.get(i, x) for i, x in enumerate(arguments)]
            args_now, kwargs_now = keras.tree.pack_sequence_as((args, kwargs), flat)
            return layer_call(*args_now, **kwargs_now)

        recomputed = super().rematerialized_call(keep_choices(call), *args, **kwargs)
        return lambda *_, **__: recomputed(*(arguments[i] for i in places))


class RecomputedInShape(Recomputed):
    """Mixin as `Recomputed`, for a layer whose output has the shape of its first input.

    `keras.RematScope(mode="larger_than")` asks for the shape while a program is traced, where Keras
    cannot trace a layer to find it.
    """

    def compute_output_spec(
        self, x: Tensor, places: Any = None, state: Any = None, return_state: bool = False
    ) -> Any:
        if return_state:
            return super().compute_output_spec(x, places, state, return_state)
        return keras.KerasTensor(tuple(x.shape), self.compute_dtype)


def _is_differentiable(x: object) -> bool:
    return ops.is_tensor(x) and keras.backend.is_float_dtype(x.dtype)
