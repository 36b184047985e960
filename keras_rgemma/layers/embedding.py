"""Defines the embedding, whose rounded matrix becomes floats some rows at a time."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_rgemma.keras_internals.layers import (
    embedding_arrays,
    int4_group_size,
    with_arrays,
    with_attributes,
)
from keras_rgemma.layers.int4 import int4_row_product, is_fast
from keras_rgemma.layers.int8 import int8_product
from keras_rgemma.layers.rounded import MODES, Rounded, after
from keras_rgemma.ops.matmul import matmul
from keras_rgemma.ops.soft_cap import soft_cap
from keras_rgemma.sharding.activations import constrain, inputs_of_maps
from keras_rgemma.sharding.entries import layout_in_force
from keras_rgemma.types import Tensor

_ELEMENTS = 1 << 24  # unpacked in one go, for the logits
_ROUNDED_ELEMENTS = 1 << 21  # rounded in one go: Keras makes six arrays of float32
_ROWS_OF_A_MESH = 256  # a multiple of the devices that share a vocabulary


@keras.saving.register_keras_serializable(package="keras_rgemma")
class ReversibleEmbedding(Rounded, keras.layers.ReversibleEmbedding):
    """Looks up embeddings and computes logits, as the layer of Keras that it extends.

    In int4, and in int8 on some backends, Keras makes 32 bits of each number of the matrix in each
    call, which takes several times the memory of the matrix. Here a lookup unpacks the rows of its
    tokens. Logits are products of int8, or in int4 computed for some rows of the vocabulary at a
    time.

    The class has the name of Keras', after which the layer is called in files of weights.
    """

    matrix_name = "embeddings"

    @property
    def weight_shape(self) -> tuple[int, int]:
        """Returns the shape of the matrix before quantization, a tuple of ints."""
        return self.input_dim, self.output_dim

    def place(self, variable: keras.Variable) -> None:
        """Leaves a new variable where its entry in the layout map says, for any shape."""

    def rounded(self, matrix: np.ndarray) -> dict[str, np.ndarray]:
        """Rounds a matrix as `quantize` does, some rows at a time; see `Rounded`."""
        size = max(1, _ROUNDED_ELEMENTS // self.output_dim)
        if size > _ROWS_OF_A_MESH:  # so that each block can be laid out as the whole
            size -= size % _ROWS_OF_A_MESH
        values = {}
        for start in range(0, self.input_dim, size):
            part = matrix[start : start + size]
            config = {**self.get_config(), "input_dim": len(part)}
            for name, value in self._rounded_by(part, config).items():
                if name == "g_idx":  # the groups of columns
                    values[name] = value
                    continue
                if name not in values:
                    values[name] = np.empty((self.input_dim, *value.shape[1:]), value.dtype)
                values[name][start : start + len(part)] = value
        return values

    def table(self) -> Tensor:
        """Returns the matrix [V, D] of a step as floats: the rows that lookups give."""
        if not self.quantization_mode:
            return self.in_step().embeddings
        tokens = ops.arange(self.input_dim, dtype="int32")
        if layout_in_force("BV") is None:
            return self(tokens)

        def row(arrays: dict[str, Tensor]) -> Tensor:
            whole = {name: ops.expand_dims(x, 0) for name, x in arrays.items()}
            return self._of_rows(whole).quantized_call(ops.zeros((), "int32"))

        # A lookup of all tokens would give all rows to each of the devices that share them.
        is_float = lambda x: keras.backend.is_float_dtype(x.dtype)  # noqa: E731
        arrays = {
            name: ops.cast(x, self.compute_dtype) if is_float(x) else x
            for name, x in embedding_arrays(self.in_step()).items()
        }
        return ops.vectorized_map(row, arrays)

    def call(self, inputs: Tensor, reverse: bool = False) -> Tensor:
        return self.in_step()._call(inputs, reverse)

    def _call(self, inputs: Tensor, reverse: bool) -> Tensor:
        if not reverse:
            return super().call(inputs)
        inputs = inputs_of_maps(inputs)
        if self.tie_weights and self.reverse_dtype is None:
            kernel = ops.convert_to_tensor(self.embeddings)
            logits = matmul(inputs, kernel, transpose_kernel=True)
        else:
            without = with_attributes(self, logit_soft_cap=None)
            # Not `without.call`, which may be a user's own function that calls this one.
            logits = super(ReversibleEmbedding, without).call(inputs, reverse=True)
        return self._bounded(logits)

    def _bounded(self, logits: Tensor) -> Tensor:
        """Bounds logits [..., V], each device its words where a mesh shares the vocabulary."""
        letters = {2: "BV", 3: "BTV"}.get(len(logits.shape))
        logits = constrain(logits, letters) if letters else logits
        return logits if self.logit_soft_cap is None else soft_cap(logits, self.logit_soft_cap)

    def quantized_call(self, inputs: Tensor, reverse: bool = False, **kwargs: Any) -> Tensor:
        with after(inputs):
            if reverse:
                inputs = inputs_of_maps(inputs)
                without = with_attributes(self, logit_soft_cap=None).in_step()
                return self._bounded(without._quantized_call(inputs, True, **kwargs))
            return self.in_step()._quantized_call(inputs, reverse, **kwargs)

    def _quantized_call(self, inputs: Tensor, reverse: bool, **kwargs: Any) -> Tensor:
        is_plain = self.tie_weights and not self.lora_enabled
        if self.quantization_mode not in MODES or not is_plain or 0 in inputs.shape:
            return super().quantized_call(inputs, reverse=reverse, **kwargs)
        if reverse and self.quantization_mode == "int8" and self.inputs_quantizer is not None:
            arrays = embedding_arrays(self)
            weights = arrays["embeddings"], arrays["embeddings_scale"]
            return int8_product(inputs, *weights, self.inputs_quantizer, transpose_kernel=True)
        if reverse:
            return self._logits(inputs)
        is_packed = self.quantization_mode == "int4"
        return self._lookup(inputs) if is_packed else super().quantized_call(inputs)

    def _lookup(self, token_ids: Tensor) -> Tensor:
        """Returns embeddings [..., D] of token ids [...]."""
        flat = ops.cast(ops.reshape(token_ids, (-1,)), "int32")
        taken = {name: ops.take(x, flat, axis=0) for name, x in embedding_arrays(self).items()}
        rows_ND = self._of_rows(taken).quantized_call(ops.arange(ops.shape(flat)[0], dtype="int32"))
        return ops.reshape(rows_ND, (*ops.shape(token_ids), self.output_dim))

    def _logits(self, x: Tensor) -> Tensor:
        """Returns logits [..., V] of hidden states [..., D]."""
        arrays = embedding_arrays(self)
        size = max(1, _ELEMENTS // self.output_dim)
        blocks = self.input_dim // size
        if blocks < 2:
            return self._logits_of_rows(arrays, x)
        whole = {
            name: ops.reshape(array[: blocks * size], (blocks, size, *array.shape[1:]))
            for name, array in arrays.items()
        }
        logits = ops.moveaxis(ops.map(lambda block: self._logits_of_rows(block, x), whole), 0, -2)
        logits = ops.reshape(logits, (*ops.shape(x)[:-1], blocks * size))
        if blocks * size == self.input_dim:
            return logits
        rest = {name: array[blocks * size :] for name, array in arrays.items()}
        return ops.concatenate([logits, self._logits_of_rows(rest, x)], axis=-1)

    def _logits_of_rows(self, arrays: dict[str, Tensor], x: Tensor) -> Tensor:
        """Returns the logits of some rows of the vocabulary."""
        size, zero = int4_group_size(self), arrays.get("embeddings_zero")
        is_int4 = self.quantization_mode == "int4" and self.output_dim % 2 == 0
        if is_int4 and is_fast(self.inputs_quantizer, zero, size):
            packed, scale = arrays["embeddings"], arrays["embeddings_scale"]
            return int4_row_product(x, packed, scale, zero, size)
        if self.quantization_mode == "int8":  # without a quantizer for the inputs
            # As a column, since Keras transposes it: PyTorch warns of a transposed vector.
            scale = ops.expand_dims(arrays["embeddings_scale"], axis=-1)
            arrays = {**arrays, "embeddings_scale": scale}
        return self._of_rows(arrays).quantized_call(x, reverse=True)

    def _of_rows(self, arrays: dict[str, Tensor]) -> Any:
        """Returns Keras' layer with these rows for its matrix."""
        return super(ReversibleEmbedding, with_arrays(self, arrays))
