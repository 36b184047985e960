"""Defines the list of a backbone's residual blocks, which a user may replace by other layers."""

import inspect
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import keras

from keras_rgemma.keras_internals.layers import track_layer
from keras_rgemma.layers.residual_block import ResidualBlock

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class TransformerLayers(list[Any]):
    """Lists the layers of a backbone in order; a layer that replaces one is trained with the rest.

    Args:
        backbone: `RGemmaBackbone`.
        layers: iterable of layers.
    """

    def __init__(self, backbone: Any, layers: Iterable[keras.Layer]) -> None:
        super().__init__(map(_checked, layers))
        self._backbone = weakref.ref(backbone)
        self._own_layers()

    def __setitem__(self, index: Any, layers: Any) -> None:
        if isinstance(index, slice):
            layers = list(map(_checked, layers))
        else:
            _checked(layers)
        super().__setitem__(index, layers)
        self._own_layers()

    def _own_layers(self) -> None:
        backbone = self._backbone()
        for layer in self:
            if isinstance(layer, keras.layers.Layer):
                if not (layer.built or isinstance(layer, ResidualBlock)):
                    layer.build((None, None, backbone.config.hidden_dim))
                track_layer(backbone, layer)


def _checked(layer: Any) -> Any:
    """Returns a layer; raises TypeError if it cannot be called as a `ResidualBlock` is."""
    if isinstance(layer, keras.layers.Layer) and not isinstance(layer, ResidualBlock):
        try:
            inspect.signature(layer.call).bind(None, None, state=None, return_state=False)
        except TypeError as error:
            raise TypeError(
                f"{type(layer).__name__} cannot replace a block: its `call` must take what a "
                "block gets, `(x, places, state=None, return_state=False)`, and return as much: "
                "`x`, and with `return_state` a pair of `x` and the state. A wrapper hands it on: "
                "`def call(self, x, *args, **kwargs): return self.block(x, *args, **kwargs)`. "
                f"Received: call{inspect.signature(layer.call)}."
            ) from error
    return layer


def as_block(layer: Any) -> Callable[..., Any]:
    """Returns a layer as a function of what a `ResidualBlock` takes.

    Keras refuses tensors and flags that meet in `*args` or `**kwargs` of a layer, so the `call` of
    such a layer is called itself.
    """
    if isinstance(layer, keras.layers.Layer) and not isinstance(layer, ResidualBlock):
        parameters = inspect.signature(layer.call).parameters.values()
        if any(parameter.kind in _VARIADIC for parameter in parameters):
            return layer.call
    return layer
