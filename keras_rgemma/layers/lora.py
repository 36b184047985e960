"""Adds LoRA to linear layers: a second product, of low rank, with matrices of its own in files."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import keras
import numpy as np
from keras import ops

from keras_rgemma.keras_internals.layers import (
    SavesZeroPoint,
    int4_group_size,
    kernel_with_merged_lora,
    layers_of,
    remove_variables,
    stored_variable,
    value_in_call,
    variables_created_trainable,
    with_arrays,
    with_attributes,
)
from keras_rgemma.layers.int4 import int4_product, is_fast
from keras_rgemma.layers.int8 import int8_product
from keras_rgemma.layers.recomputed import Recomputed
from keras_rgemma.layers.rounded import FACTORS, MODES, Rounded, after
from keras_rgemma.layers.turned import turned_array
from keras_rgemma.sharding.activations import inputs_of_low_rank
from keras_rgemma.types import LinearMap, Tensor

_ALPHA = "lora_alpha"
# Modes of quantization that look at the inputs of a layer.
CALIBRATED = ("gptq", "awq")


class LinearMapParts(NamedTuple):
    """Holds the variables and numbers of a linear map.

    Attributes:
        variables: dict of name to `keras.Variable`: "kernel"; "bias" if there is one; of a
            quantized layer all variables of its mode ("kernel_scale", "kernel_zero", "g_idx", ...);
            and "lora_kernel_a" and "lora_kernel_b" if LoRA is enabled.
        quantization_mode: str, or None.
        lora_scale: float, or None without LoRA.
    """

    variables: dict[str, keras.Variable]
    quantization_mode: str | None
    lora_scale: float | None


class LoRA(Recomputed, SavesZeroPoint, Rounded):
    """Mixin for `Dense` and `EinsumDense` that computes LoRA as a second product.

    List it before the Keras class. With LoRA (arXiv 2106.09685, section 4.1),
    `y = x W + (alpha / rank) (x A) B`. Keras adds A B to W before the product instead, which copies
    W and computes its gradient in every step. Keras also saves the sum alone and drops A and B when
    it loads a file: training cannot continue from that file.
    """

    lora_enabled: bool
    lora_rank: int | None
    lora_alpha: float | None

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        return self.in_step()._call(inputs, training)

    def _call(self, inputs: Tensor, training: bool | None) -> Tensor:
        if not self.lora_enabled:
            return super().call(inputs, training)
        return super(LoRA, self._without_lora()).call(inputs, training) + self._low_rank(inputs)

    def quantized_call(self, inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.in_step()._quantized_call(inputs, *args, **kwargs)

    def _quantized_call(self, inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self._awaits_calibration():
            # Keras 3.15 looks at the inputs of `call`, but calls `quantized_call` alone. Without
            # `stop_gradient`, PyTorch would keep a graph for each of these inputs.
            return self.call(ops.stop_gradient(inputs))
        with after(inputs):
            y = self._rounded_map(inputs)
            if y is None:
                base = super(LoRA, self._without_lora())
                y = base.quantized_call(inputs, *args, **kwargs)
            return y + self._low_rank(inputs) if self.lora_enabled else y

    def _rounded_map(self, inputs: Tensor) -> Tensor | None:
        """Computes in int8 or int4 what Keras computes, without LoRA; None where Keras has to."""
        mode = self.quantization_mode
        if mode not in MODES:
            return None
        tensors = {
            name: ops.convert_to_tensor(variable)
            for name in ("kernel", "kernel_scale", "kernel_zero")
            if (variable := stored_variable(self, name)) is not None
        }
        quantizer, shape = self.inputs_quantizer, self.weight_shape
        if mode == "int8" and quantizer is not None:
            turned = turned_array(stored_variable(self, "kernel"))
            kernel, is_turned = (tensors["kernel"], False) if turned is None else (turned, True)
            scale = tensors["kernel_scale"]
            y = int8_product(inputs, kernel, scale, quantizer, transpose_kernel=is_turned)
        elif mode == "int4" and is_fast(quantizer, tensors.get("kernel_zero"), shape[-1]):
            packed, scale, zero = tensors.values()
            size = int4_group_size(self)
            y = int4_product(inputs, packed, scale, zero, group_size=size, shape=shape)
        else:
            return None
        y = y if self.bias is None else y + self.bias
        return y if self.activation is None else self.activation(y)

    def _without_lora(self) -> Self:
        """Makes a copy of the layer with the same variables and without LoRA, for Keras' methods.

        A flag of the layer itself, off for the time of a call, would be off for other threads, too.
        """
        return with_attributes(self, lora_enabled=False)

    def _awaits_calibration(self) -> bool:
        """Returns whether GPTQ or AWQ has yet to round the kernel."""
        mode = self.quantization_mode
        return mode in CALIBRATED and not getattr(self, f"is_{mode}_calibrated")

    def _low_rank(self, inputs: Tensor) -> Tensor:
        """Computes `(alpha / rank) (x A) B`."""
        # In a model of half precision A and B are float32, and Keras casts no variable.
        a = ops.cast(self.lora_kernel_a, self.compute_dtype)
        b = ops.cast(self.lora_scale * self.lora_kernel_b, self.compute_dtype)
        inputs = inputs_of_low_rank(inputs, f"{self.path}/lora_kernel_a")
        return ops.matmul(self._product(inputs, a), b)

    def linear_map_parts(self) -> LinearMapParts:
        """Collects the variables and numbers that define the layer's outputs.

        Returns:
            `LinearMapParts`.
        """
        mode = self.quantization_mode
        names = ["kernel", *self.variable_serialization_spec[mode]]
        if mode in CALIBRATED and not self._awaits_calibration():
            names.remove("kernel")  # `quantized_kernel` replaces the kernel
        variables = {name: stored_variable(self, name) for name in dict.fromkeys(names)}
        if self.lora_enabled:
            variables |= {name: getattr(self, name) for name in FACTORS}
        variables = {name: variable for name, variable in variables.items() if variable is not None}
        return LinearMapParts(variables, mode, self.lora_scale if self.lora_enabled else None)

    def linear_map(self, arrays: Mapping[str, Tensor] | None = None) -> LinearMap:
        """Binds the function of the layer to arrays.

        The bound function reads no variable and costs no layer call.

        Args:
            arrays: dict of names to tensors, one for each of `linear_map_parts().variables`; None
                for the current values of the variables, in the dtypes that a call sees.

        Returns:
            A function of float [..., inputs] that returns float [..., outputs], in the compute
            dtype of the layer.
        """
        if arrays is None:
            variables = self.linear_map_parts().variables
            arrays = {name: value_in_call(self, x) for name, x in variables.items()}
        bound = with_arrays(self, arrays)
        return bound.quantized_call if self.quantization_mode else bound.call

    @property
    def lora_scale(self) -> float:
        """Returns alpha / rank, the factor of the product of A and B."""
        return self.lora_alpha / self.lora_rank

    def enable_lora(self, rank: int, lora_alpha: float | None = None, **kwargs: Any) -> None:
        super().enable_lora(rank, lora_alpha, **kwargs)
        self.trainable = True
        for variable in variables_created_trainable(self):
            variable.trainable = False
        for name in FACTORS:
            getattr(self, name).trainable = True

    def lora_values(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Returns A, B and alpha as `assign_lora` takes them: NumPy arrays and a float."""
        a, b = (ops.convert_to_numpy(getattr(self, name)) for name in FACTORS)
        return a, b, float(self.lora_alpha)

    def assign_lora(self, a: Tensor, b: Tensor, alpha: float) -> None:
        """Sets A and B of the layer's rank, and alpha."""
        self.lora_kernel_a.assign(a)
        self.lora_kernel_b.assign(b)
        self.lora_alpha = alpha

    def disable_lora(self) -> None:
        """Removes A and B. The layer is the same as before `enable_lora`."""
        remove_variables(self, FACTORS)
        self.lora_enabled, self.lora_rank, self.lora_alpha = False, None, None
        # On TensorFlow `self.trainable = True` does nothing where it is True already.
        for variable in variables_created_trainable(self):
            variable.trainable = True

    def merge_lora(self) -> None:
        """Adds A B to the kernel, rounds a quantized kernel anew, and removes A and B."""
        if self.quantization_mode is None:
            factors = (ops.convert_to_numpy(getattr(self, name)) for name in FACTORS)
            self._add_to_kernel(*factors, self.lora_scale)
        else:
            kernel, scale, zero = kernel_with_merged_lora(self)
            stored_variable(self, "kernel").assign(kernel)
            self.kernel_scale.assign(scale)
            if zero is not None:
                self.kernel_zero.assign(zero)
        self.disable_lora()

    # === Files ===

    def save_own_variables(self, store: Any) -> None:
        if self._awaits_calibration():
            raise ValueError(
                f"{self.path!r} was to be quantized by {self.quantization_mode}, which failed. "
                "Load the model as it was before."
            )
        super(LoRA, self._without_lora()).save_own_variables(store)
        if self.lora_enabled:
            for name in FACTORS:
                store[name] = getattr(self, name)
            store[_ALPHA] = np.array(self.lora_alpha, "float32")

    def load_own_variables(self, store: Any) -> None:
        """Loads kernel, bias, A and B; a layer without LoRA adds A B to its kernel.

        A layer that is rounded to int8 or int4 rounds a kernel of floats.

        Raises:
            ValueError: A and B have another rank than the layer's LoRA.
        """
        keys = store.keys()
        stored = {key: store[key] for key in keys}
        factors = [np.array(stored.pop(name)) for name in FACTORS if name in stored]
        alpha = float(np.array(stored.pop(_ALPHA))) if factors else None
        if not self.lora_enabled:
            super().load_own_variables(stored)
            if factors:
                self._add_to_kernel(*factors, alpha / len(factors[1]))
            return
        if factors:
            self.check_stored_rank(len(factors[1]))
        # Keras sets both A and B to zero, and no gradient would reach them again.
        initial = ops.convert_to_numpy(self.lora_kernel_a), np.zeros(self.lora_kernel_b.shape)
        super().load_own_variables(stored)
        self.assign_lora(*(factors or initial), self.lora_alpha if alpha is None else alpha)

    def check_stored_rank(self, rank: int) -> None:
        """Raises ValueError if a file has A and B of another rank than the layer's LoRA."""
        if rank != self.lora_rank:
            raise ValueError(
                f"The file has LoRA of rank {rank} for {self.path!r}, and the model of rank "
                f"{self.lora_rank}. Call `enable_lora({rank})`, or load it before `enable_lora`: "
                "then it is merged."
            )

    def _add_to_kernel(self, a: np.ndarray, b: np.ndarray, scale: float) -> None:
        """Adds `scale * A B` to the kernel."""
        kernel = stored_variable(self, "kernel")
        value = ops.convert_to_numpy(kernel.value).astype("float32")
        kernel.assign(value + scale * (a @ b))


def lora_layers(model: keras.Model) -> list[LoRA]:
    """Lists the layers of a model with LoRA."""
    return [x for x in layers_of(model) if isinstance(x, LoRA) and x.lora_enabled]
