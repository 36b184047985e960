"""Block-diagonal linear maps."""

import keras
from keras import ops

from keras_rgemma.keras_internals.layers import kernel_variable
from keras_rgemma.layers.lora import CALIBRATED, LoRA


@keras.saving.register_keras_serializable(package="keras_rgemma")
class BlockDiagonal(LoRA, keras.layers.EinsumDense):
    """`EinsumDense` layer whose LoRA is a product of its own; all blocks share its B."""

    @property
    def weight_shape(self):
        """The shape of the kernel before it was quantized, a tuple of ints."""
        is_packed = self.quantization_mode == "int4"
        return tuple(self.original_kernel_shape if is_packed else kernel_variable(self).shape)

    def quantize(self, mode=None, type_check=True, config=None):
        """Rounds the kernel to int8, int4 or float8; GPTQ and AWQ leave it as it is.

        Keras would take its blocks for the heads of attention.
        """
        if mode not in CALIBRATED:
            super().quantize(mode, type_check, config)

    def _product(self, x, kernel):
        return ops.einsum(self.equation, x, kernel)


def block_diagonal_dense(width, num_blocks, name, dtype=None):
    """Makes a linear layer whose matrix is block-diagonal, on head-major inputs.

    It is an `EinsumDense`, so that int8, int4, LoRA and sharding treat it as any other linear
    layer; heads come first because a product batched over them is twice as fast on CPUs.

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
        # Flax counts the leading axis, too, as fan-in.
        kernel_initializer=keras.initializers.RandomNormal(stddev=width**-0.5),
        name=name,
        dtype=dtype,
    )


def to_blocks(x, num_blocks):
    """[B, T, L] -> [H, B, T, L / H]."""
    x = ops.reshape(x, (-1, ops.shape(x)[1], num_blocks, x.shape[2] // num_blocks))
    return ops.transpose(x, (2, 0, 1, 3))


def from_blocks(x):
    """[H, B, T, L / H] -> [B, T, L]."""
    width = x.shape[0] * x.shape[3]
    x = ops.transpose(x, (1, 2, 0, 3))
    return ops.reshape(x, (-1, ops.shape(x)[1], width))
