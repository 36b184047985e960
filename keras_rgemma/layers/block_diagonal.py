"""Defines block-diagonal linear layers."""

from typing import Any

import keras
from keras import ops

from keras_rgemma.keras_internals.layers import stored_variable
from keras_rgemma.layers.lora import CALIBRATED, LoRA
from keras_rgemma.sharding.weights import place_gate
from keras_rgemma.types import Shape, Tensor


@keras.saving.register_keras_serializable(package="keras_rgemma")
class BlockDiagonal(LoRA, keras.layers.EinsumDense):
    """`EinsumDense` layer with LoRA as a second product; all blocks share one B."""

    def build(self, input_shape: Shape) -> None:
        self.num_blocks = input_shape[0]
        super().build(input_shape)

    def place(self, variable: keras.Variable) -> None:
        """Lays a new variable out over a mesh by its blocks; all blocks share one B of LoRA."""
        if variable.name != "lora_kernel_b":
            place_gate(variable, self.num_blocks)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Returns the shape of the kernel before quantization, a tuple of ints."""
        is_packed = self.quantization_mode == "int4"
        return tuple(
            self.original_kernel_shape if is_packed else stored_variable(self, "kernel").shape
        )

    def quantize(
        self, mode: str | None = None, type_check: bool = True, config: Any = None
    ) -> None:
        """Rounds the kernel to int8, int4 or float8; GPTQ and AWQ leave it as it is.

        Keras would treat the blocks as heads of attention.
        """
        if mode not in CALIBRATED:
            super().quantize(mode, type_check, config)

    def _product(self, x: Tensor, kernel: Tensor) -> Tensor:
        return ops.einsum(self.equation, x, kernel)


def block_diagonal_dense(
    width: int, num_blocks: int, name: str, dtype: str | keras.DTypePolicy | None = None
) -> BlockDiagonal:
    """Makes a linear layer with a block-diagonal matrix, for head-major inputs.

    The layer is an `EinsumDense`, so that int8, int4, LoRA and sharding treat it as any other
    linear layer; heads come first because a product batched over heads is twice as fast on CPUs.

    Args:
        width: int, features in all, L.
        num_blocks: int, H, divides `width`.
        name: str.
        dtype: of the layer.

    Returns:
        `BlockDiagonal`, [H, B, T, L / H] to the same shape, biased.
    """
    size = width // num_blocks
    return BlockDiagonal(
        "hbti,hij->hbtj",
        output_shape=(None, None, size),
        bias_axes="hj",
        # Flax counts the leading axis as fan-in, too.
        kernel_initializer=keras.initializers.RandomNormal(stddev=width**-0.5),
        name=name,
        dtype=dtype,
    )


def to_blocks(x: Tensor, num_blocks: int) -> Tensor:
    """Splits features into blocks: [B, T, L] -> [H, B, T, L / H]."""
    x_BTHK = ops.reshape(x, (-1, ops.shape(x)[1], num_blocks, x.shape[2] // num_blocks))
    return ops.transpose(x_BTHK, (2, 0, 1, 3))


def from_blocks(x: Tensor) -> Tensor:
    """Joins the features of blocks: [H, B, T, L / H] -> [B, T, L]."""
    width = x.shape[0] * x.shape[3]
    x_BTHK = ops.transpose(x, (1, 2, 0, 3))
    return ops.reshape(x_BTHK, (-1, ops.shape(x_BTHK)[1], width))
