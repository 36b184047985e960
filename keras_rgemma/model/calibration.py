"""Describes the model to GPTQ and AWQ, which round layers by their inputs."""

import warnings
from typing import Any

import keras
from keras import ops

from keras_rgemma.keras_internals.calibration import CalibratedBlock
from keras_rgemma.keras_internals.layers import layers_of
from keras_rgemma.layers.block_diagonal import BlockDiagonal
from keras_rgemma.layers.lora import CALIBRATED, lora_layers
from keras_rgemma.types import Tensor


def check(model: keras.Model, mode: str | None) -> None:
    """Raises ValueError if LoRA is enabled, which GPTQ and AWQ would round into the kernels.

    Warns where GPTQ takes long.
    """
    if mode in CALIBRATED and lora_layers(model):
        raise ValueError(
            f"LoRA is enabled, which {mode} knows nothing of. Call `merge_lora` or `disable_lora` "
            "of the backbone before `quantize`."
        )
    if mode == "gptq" and keras.config.backend() == "jax":
        warnings.warn(
            "On JAX, GPTQ runs column by column, one operation at a time: minutes for each block "
            "even of a small model. It is far faster with KERAS_BACKEND=torch or tensorflow: "
            "quantize there, call `save_to_preset`, and load the preset here.",
            stacklevel=3,
        )


def structure(backbone: Any) -> dict[str, list[Any]]:
    """Returns the layers of a backbone in the order of its forward pass, for Keras' calibration."""
    return {
        "pre_block_layers": [backbone.embed],
        "sequential_blocks": [_Block(layer) for layer in backbone.transformer_layers],
    }


class _Block(CalibratedBlock):
    """Wraps a residual block and hides its block-diagonal layers from Keras' calibration.

    Keras would treat them as layers of attention, and mix the inputs of blocks and of tokens.
    """

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def __call__(self, x: Tensor) -> Tensor:
        # Keras keeps the output of every sample for the next block. Norms and gates are trainable,
        # so PyTorch would keep the graph of each output, too.
        return ops.stop_gradient(self.layer(x))

    def calibrated_layers(self) -> list[keras.Layer]:
        layers = layers_of(self.layer)
        return [layer for layer in layers if not isinstance(layer, BlockDiagonal)]
