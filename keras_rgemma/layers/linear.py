"""Defines the plain linear layers of the blocks."""

import keras
from keras import ops

from keras_rgemma.keras_internals.layers import stored_variable
from keras_rgemma.layers.lora import LoRA
from keras_rgemma.layers.turned import turned_array
from keras_rgemma.ops.matmul import matmul
from keras_rgemma.types import Tensor


class _Dense(keras.layers.Dense):
    """`Dense` layer with the product that is fast on the backend."""

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        turned = turned_array(stored_variable(self, "kernel"))
        is_turned = turned is not None
        kernel = turned if is_turned else ops.convert_to_tensor(self.kernel)
        bias = None if self.bias is None else ops.convert_to_tensor(self.bias)
        y = matmul(inputs, kernel, bias, transpose_kernel=is_turned)
        return y if self.activation is None else self.activation(y)


@keras.saving.register_keras_serializable(package="keras_rgemma")
class Linear(LoRA, _Dense):
    """`Dense` layer with LoRA as a second product."""

    @property
    def weight_shape(self) -> tuple[int, int]:
        """Returns the shape of the kernel before quantization, a tuple of ints."""
        return self.input_spec.axes[-1], self.units

    def _product(self, x: Tensor, kernel: Tensor) -> Tensor:
        return ops.matmul(x, kernel)


def linear(
    units: int,
    fan_in: int,
    name: str,
    dtype: str | keras.DTypePolicy | None = None,
    variance: float = 1.0,
    use_bias: bool = True,
) -> Linear:
    """Makes a `Linear` layer with an initial kernel of variance `variance / fan_in`.

    Args:
        units: int, the output width.
        fan_in: int, the number of inputs that the reference counts.
        name: str.
        dtype: of the layer.
        variance: float, 2 / num_layers for the projections back into the residual stream.
        use_bias: bool.
    """
    return Linear(
        units,
        use_bias=use_bias,
        kernel_initializer=keras.initializers.RandomNormal(stddev=(variance / fan_in) ** 0.5),
        name=name,
        dtype=dtype,
    )
