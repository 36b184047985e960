"""Rounds the matrix of one layer while it is loaded, so that a file of floats fits int8 or int4."""

import contextlib
from collections.abc import Mapping
from typing import Any, Self

import keras
import numpy as np
from keras import ops

from keras_rgemma.backend import backend_module
from keras_rgemma.keras_internals.layers import stored_variable, with_arrays
from keras_rgemma.keras_internals.variables import initialize, uninitialized_variables
from keras_rgemma.ops.int8_matmul import lay_out
from keras_rgemma.sharding.host import alone_on_host
from keras_rgemma.sharding.weights import check_weight, in_step, is_fully_sharded, place_scale
from keras_rgemma.types import Tensor

MODES = ("int8", "int4")
FACTORS = ("lora_kernel_a", "lora_kernel_b")


def rounding_config(mode: str, block_size: int = 128) -> keras.quantizers.QuantizationConfig:
    """Returns the configuration with which `quantize` rounds weights to one of `MODES`.

    Args:
        mode: str.
        block_size: int, elements that share a scale in int4; -1 for all of a column.
    """
    if mode == "int8":
        return keras.quantizers.Int8QuantizationConfig()
    return keras.quantizers.Int4QuantizationConfig(block_size=block_size)


def after(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Returns a context for what is computed from rounded weights, once a tensor is there.

    These products need nothing but the weights, so TensorFlow would make floats of all layers'
    weights at once, and in a loop keep them.
    """
    if keras.config.backend() != "tensorflow":
        return contextlib.nullcontext()
    return backend_module("keras_rgemma.keras_internals").after(tensor)


class Rounded:
    """Mixin for layers of Keras with a matrix; a rounded one takes floats from a file and rounds.

    List it before the Keras class. `matrix_name` is the name of the matrix, the first weight in the
    layer's files, and a subclass has `weight_shape`, its shape before it was rounded.
    """

    matrix_name = "kernel"
    _refused = None  # why the weights of a file were refused last, a str

    def add_weight(self, *args: Any, **kwargs: Any) -> keras.Variable:
        shape = args[0] if args else kwargs.get("shape", ())
        check_weight(f"{self.path}/{kwargs.get('name')}", shape)
        variable = super().add_weight(*args, **kwargs)
        self.place(variable)
        return variable

    def place(self, variable: keras.Variable) -> None:
        """Lays a new variable out over a mesh, where its layout depends on its shape."""
        if variable.name in (f"{self.matrix_name}_scale", f"{self.matrix_name}_zero"):
            place_scale(variable, f"{self.path}/{self.matrix_name}")

    def in_step(self) -> Self:
        """Returns the layer as a step calls it, its matrices whole along the data axis."""
        if not is_fully_sharded():
            return self
        names = (self.matrix_name, *FACTORS)
        variables = {name: stored_variable(self, name) for name in names}
        return with_arrays(self, {n: in_step(x) for n, x in variables.items() if x is not None})

    def quantize(
        self, mode: str | None = None, type_check: bool = True, config: Any = None
    ) -> None:
        # With the type check Keras quantizes no subclass of its layers.
        super().quantize(mode, type_check=False, config=config)
        self.lay_out()

    def lay_out(self) -> None:
        """Stores an int8 kernel as products read it; see `ops.int8_matmul.lay_out`."""
        if self.quantization_mode == "int8" and self.matrix_name == "kernel":
            kernel = stored_variable(self, self.matrix_name)
            if len(kernel.shape) == 2:
                lay_out(kernel)

    def rounded(self, matrix: np.ndarray) -> dict[str, np.ndarray]:
        """Rounds a matrix as `quantize` does.

        Args:
            matrix: float NumPy array of the layer's shape before it was rounded.

        Returns:
            dict of names to NumPy arrays: the matrix, its scale, and what else the mode has.
        """
        return self._rounded_by(matrix, self.get_config())

    def _rounded_by(self, matrix: np.ndarray, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Rounds a matrix in a layer of its own, made from a config."""
        with alone_on_host():
            return self._rounded_here(matrix, config)

    def _rounded_here(self, matrix: np.ndarray, config: Mapping[str, Any]) -> dict[str, np.ndarray]:
        without = dict.fromkeys(("quantization_config", "lora_rank", "lora_alpha"))
        layer = type(self).from_config({**config, **without, "dtype": self.variable_dtype})
        with uninitialized_variables():
            layer.build_from_config(self.get_build_config())
        value = ops.convert_to_tensor(matrix, dtype=self.variable_dtype)
        if not ops.all(ops.isfinite(value)):  # rounded, infinity would be gone until a product
            raise ValueError(
                f"The tensor '{self.path}/{self.matrix_name}' holds NaN or infinity in "
                f"{self.variable_dtype}: the checkpoint is broken, or its numbers are too large. "
                "Fetch it again, or load it in bfloat16."
            )
        initialize(stored_variable(layer, self.matrix_name), lambda shape, dtype: value)
        mode = self.quantization_mode
        default = rounding_config(mode, getattr(self.dtype_policy, "block_size", -1))
        layer.quantize(mode, config=self.quantization_config or default)
        stored = _stored_variables(layer, mode)
        stored.pop("bias", None)
        return {name: ops.convert_to_numpy(x.value) for name, x in stored.items()}

    def load_own_variables(self, store: Any) -> None:
        """Loads the weights; a rounded layer rounds a matrix of floats.

        Raises:
            ValueError: the matrix has another shape than the layer's, or holds NaN or infinity.
        """
        keys = store.keys()  # a store is no iterable
        stored = {key: store[key] for key in keys}
        if not stored and self._refused:
            # Keras visits an embedding several times, finds its weights in the file only the first
            # time, and reports the last error.
            raise ValueError(f"The weights of {self.path!r} were refused: {self._refused}")
        self._refused = None
        try:
            super().load_own_variables(self._rounded_store(stored))
        except ValueError as error:
            self._refused = str(error)
            raise
        if self.built:
            self.lay_out()

    def _rounded_store(self, stored: dict[str, Any]) -> dict[str, Any]:
        """Rounds a matrix of floats that a file has for this layer, if the layer is rounded.

        Args:
            stored: dict, what the file has for the layer.

        Returns:
            dict of what the file of the rounded layer would have; or `stored`.
        """
        mode = self.quantization_mode
        if not self.built or mode not in MODES or "0" not in stored:
            return stored
        if not keras.backend.is_float_dtype(str(stored["0"].dtype)):
            return stored
        arrays = {name: stored[str(i)] for i, name in enumerate(_stored_variables(self, None))}
        matrix = arrays[self.matrix_name]
        if tuple(matrix.shape) != tuple(self.weight_shape):
            raise ValueError(
                f"{self.path!r} has a matrix of shape {tuple(self.weight_shape)}. Received: one of "
                f"shape {tuple(matrix.shape)} in the file. Load it into a model of its own sizes."
            )
        arrays |= self.rounded(matrix)
        return {str(i): arrays[name] for i, name in enumerate(_stored_variables(self, mode))}


def _stored_variables(layer: keras.Layer, mode: str | None) -> dict[str, keras.Variable]:
    """Returns the variables that a file has of a layer in a mode, a dict of names, in order."""
    variables = {x: stored_variable(layer, x) for x in layer.variable_serialization_spec[mode]}
    return {name: x for name, x in variables.items() if x is not None}
