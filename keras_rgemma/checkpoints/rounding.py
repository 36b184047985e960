"""Rounds the weights of a model to int8 or int4 while a checkpoint is loaded, one after the other.

The weights are those of `quantize` after loading: the layers of Keras compute both.
"""

import keras
import numpy as np
from keras import ops

from keras_rgemma.keras_internals.layers import layers_of, set_own_policy
from keras_rgemma.layers.lora import LoRA

MODES = ("int8", "int4")
_ELEMENTS = 1 << 21  # of the embedding, rounded in one go: Keras makes six arrays of float32
_EMBEDDING = "token_embedding"
_BY_ROW = ("embeddings", "embeddings_scale", "embeddings_zero")


def check_mode(mode):
    """Raises ValueError if weights cannot be rounded to a mode while they are loaded."""
    if mode not in (None, *MODES):
        raise ValueError(
            f"`quantize` must be one of {MODES}, or None. Received: {mode!r}. Other modes need the "
            "whole model: load it, and call its method `quantize`."
        )


def round_loaded(model, mode):
    """Rounds all weights of a model that a preset gave.

    Raises:
        ValueError: the preset is of a quantized model.
    """
    modes = {getattr(layer, "quantization_mode", None) for layer in layers_of(model)} - {None}
    if modes:
        raise ValueError(
            f"This preset is quantized already, to {', '.join(sorted(modes))}: leave "
            f"`quantize={mode!r}` out, or load a preset of the model before it was quantized."
        )
    model.quantize(mode)


class Rounding:
    """Makes an `RGemmaBackbone` and rounds its layers when they get their weights.

    The embedding, which is the largest weight, is made for rounded values, and these are computed
    for some rows at a time. The others are made as they are and rounded one by one.

    Args:
        mode: str of `MODES`.
        dtype: the dtype policy of the model.

    Raises:
        ValueError: the policy is of quantized layers, or of several dtypes.
    """

    def __init__(self, mode, dtype):
        self._policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
        if type(self._policy) is not keras.DTypePolicy:
            raise ValueError(
                f"With `quantize` the dtype must be a plain one such as 'bfloat16'. Received: "
                f"{dtype!r}."
            )
        self.mode = mode
        configs = {
            "int8": keras.quantizers.Int8QuantizationConfig,
            "int4": keras.quantizers.Int4QuantizationConfig,
        }
        self._config = configs[mode]()

    @property
    def variable_dtype(self):
        """Returns the dtype of weights before they are rounded, str."""
        return self._policy.variable_dtype

    def make(self, make):
        """Makes the backbone.

        Args:
            make: function of `dtype` that returns the backbone.
        """
        size = f"/{self._config.block_size}" if self.mode == "int4" else ""
        rounded = keras.dtype_policies.get(f"{self.mode}{size}_from_{self._policy.name}")
        policies = keras.dtype_policies.DTypePolicyMap(self._policy, {_EMBEDDING: rounded})
        backbone = make(dtype=policies)
        for layer in layers_of(backbone):
            # With the map a rounded layer would be saved as one that is not.
            if isinstance(layer.dtype_policy, keras.dtype_policies.DTypePolicyMap):
                set_own_policy(layer, self._policy)
        self._embedding = backbone.token_embedding
        self._embedding.quantization_config = self._config
        self._layers = {x.path: x for x in layers_of(backbone) if isinstance(x, LoRA)}
        return backbone

    def is_embedding(self, path):
        """Checks whether a weight is the embedding, which `rounded_embedding` rounds."""
        return path == f"{_EMBEDDING}/embeddings"

    def rounded_embedding(self, array):
        """Rounds an embedding.

        Args:
            array: float NumPy array [V, D].

        Returns:
            dict of the path of a variable to a NumPy array.
        """
        size = max(1, _ELEMENTS // array.shape[1])
        values = {}
        for start in range(0, len(array), size):
            part = array[start : start + size]
            for name, value in self._rounded_rows(part).items():
                if name not in _BY_ROW:
                    values[name] = value
                    continue
                if name not in values:
                    values[name] = np.empty((len(array), *value.shape[1:]), value.dtype)
                values[name][start : start + len(part)] = value
        return {f"{self._embedding.path}/{name}": value for name, value in values.items()}

    def _rounded_rows(self, array):
        """Rounds rows of the embedding, with a layer of their own."""
        rows, dim = array.shape
        layer = keras.layers.ReversibleEmbedding(
            rows, dim, embeddings_initializer="zeros", dtype=self._policy, name=_EMBEDDING
        )
        layer.build()
        layer.embeddings.assign(array)
        layer.quantize(self.mode, config=self._config)
        return {x.path.rpartition("/")[2]: ops.convert_to_numpy(x.value) for x in layer.variables}

    def finish(self, path):
        """Rounds the layer whose weight has got its value, if that is a matrix to be rounded."""
        owner, _, name = path.rpartition("/")
        if name == "kernel" and owner in self._layers:
            self._layers[owner].quantize(self.mode, config=self._config)
