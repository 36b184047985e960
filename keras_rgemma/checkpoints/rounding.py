"""Rounds the weights of a model to int8 or int4 while a checkpoint is loaded, one after the other.

The weights are those of `quantize` after loading: the layers of Keras compute both.
"""

from collections.abc import Callable

import keras
import numpy as np

from keras_rgemma.checkpoints.names import rounded_layers
from keras_rgemma.config import RGemmaConfig
from keras_rgemma.keras_internals.layers import layers_of, set_own_policy
from keras_rgemma.layers.rounded import MODES, Rounded, rounding_config


def check_mode(mode: str | None) -> None:
    """Raises ValueError if weights cannot be rounded to a mode while they are loaded."""
    if mode not in (None, *MODES):
        raise ValueError(
            f"`quantize` must be one of {MODES}, or None. Received: {mode!r}. Other modes need the "
            "whole model: load it, and call its method `quantize`."
        )


def quantized_modes(policy: keras.DTypePolicy) -> set[str]:
    """Returns the modes of quantization in a dtype policy, a map or not: a set of str."""
    is_map = isinstance(policy, keras.dtype_policies.DTypePolicyMap)
    policies = [policy, *(policy.values() if is_map else ())]
    return {x.quantization_mode for x in policies} - {None}


class Rounding:
    """Makes an `RGemmaBackbone` for rounded weights, and rounds the weights of a checkpoint for it.

    Args:
        mode: str of `MODES`.
        dtype: the dtype policy of the model before it is rounded; None for Keras' global policy.

    Raises:
        ValueError: the policy is of quantized layers.
    """

    def __init__(self, mode: str, dtype: str | keras.DTypePolicy | None) -> None:
        self._source = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
        self._mode, self._config = mode, rounding_config(mode)
        if quantized_modes(self._source):
            raise ValueError(
                f"With `quantize` the dtype must be a plain one such as 'bfloat16'. Received: "
                f"{dtype!r}."
            )

    def make(self, config: RGemmaConfig, make: Callable[..., keras.Model]) -> keras.Model:
        """Makes a backbone whose layers are as after `quantize`, but for their weights.

        Args:
            config: `RGemmaConfig` of the backbone.
            make: function of `dtype` that returns it.
        """
        self._policies = self._rounded_policies(config)
        backbone = make(dtype=self._policies)
        for layer in layers_of(backbone):
            if isinstance(layer.dtype_policy, keras.dtype_policies.DTypePolicyMap):
                set_own_policy(layer, self._source)
        self._layers = {x.path: x for x in layers_of(backbone) if isinstance(x, Rounded)}
        for layer in self._layers.values():
            layer.quantization_config = self._config
        return backbone

    def _rounded_policies(self, config: RGemmaConfig) -> keras.dtype_policies.DTypePolicyMap:
        """Returns the policy of the rounded model, a `DTypePolicyMap`."""
        maps, source = keras.dtype_policies.DTypePolicyMap, self._source
        default, policies = source, {}
        if isinstance(source, maps):
            default, policies = source.default_policy, dict(source)
        size = f"/{self._config.block_size}" if self._mode == "int4" else ""
        for path in rounded_layers(config):
            name = (source[path] if isinstance(source, maps) else source).name
            policies[path] = keras.dtype_policies.get(f"{self._mode}{size}_from_{name}")
        return maps(default, policies)

    def variable_dtype(self, path: str) -> str:
        """Returns the dtype of a weight before it is rounded, str."""
        return self._policies[path.rpartition("/")[0]].variable_dtype

    def rounded(self, path: str, array: np.ndarray) -> dict[str, np.ndarray]:
        """Rounds a weight, if it is the matrix of a layer to be rounded.

        Args:
            path: str, the path of the weight's variable.
            array: float NumPy array.

        Returns:
            dict of the paths of variables to NumPy arrays.
        """
        owner, _, name = path.rpartition("/")
        layer = self._layers.get(owner)
        if layer is None or name != layer.matrix_name:
            return {path: array}
        return {f"{owner}/{name}": value for name, value in layer.rounded(array).items()}

    def lay_out(self, model: keras.Model) -> None:
        """Stores the weights of a model that has them all as `quantize` does."""
        for layer in layers_of(model):
            if isinstance(layer, Rounded):
                layer.lay_out()
