"""What GPTQ and AWQ, which round layers by what goes through them, are told of the model."""

from keras import ops

from keras_rgemma.keras_internals.calibration import CalibratedBlock
from keras_rgemma.keras_internals.layers import layers_of
from keras_rgemma.layers.block_diagonal import BlockDiagonal
from keras_rgemma.layers.lora import CALIBRATED, lora_layers


def check(model, mode):
    """Raises ValueError for LoRA where it would be rounded into the kernels and be there, too."""
    if mode in CALIBRATED and lora_layers(model):
        raise ValueError(
            f"LoRA is enabled, which {mode} knows nothing of. Call `merge_lora` or `disable_lora` "
            "of the backbone before `quantize`."
        )


def structure(backbone):
    """The parts of a backbone in the order of its forward pass, as Keras' calibration has them."""
    return {
        "pre_block_layers": [backbone.embed],
        "sequential_blocks": [_Block(layer) for layer in backbone.transformer_layers],
    }


class _Block(CalibratedBlock):
    """A residual block without its block-diagonal layers, which Keras would take for attention's.

    It would mix the inputs of their blocks and of several tokens.
    """

    def __init__(self, layer):
        self.layer = layer

    def __call__(self, x):
        # What every sample gives is kept for the next block. Norms and gates are trainable, so
        # PyTorch would keep the graph of each, too.
        return ops.stop_gradient(self.layer(x))

    def calibrated_layers(self):
        layers = layers_of(self.layer)
        return [layer for layer in layers if not isinstance(layer, BlockDiagonal)]
