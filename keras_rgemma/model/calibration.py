"""What GPTQ and AWQ, which round layers by what goes through them, are told of the model."""

from keras import ops

from keras_rgemma.layers.block_diagonal import BlockDiagonal


def structure(backbone):
    """The parts of a backbone in the order of its forward pass, as Keras' calibration has them."""
    return {
        "pre_block_layers": [lambda token_ids: backbone.embed(token_ids)],
        "sequential_blocks": [_Block(layer) for layer in backbone.transformer_layers],
    }


class _Block:
    """A residual block without its block-diagonal layers, which Keras would take for attention's.

    It would mix the inputs of their blocks and of several tokens.
    """

    def __init__(self, layer):
        self.layer = layer

    def __call__(self, x):
        # Or PyTorch would keep what every block needs for gradients.
        return ops.stop_gradient(self.layer(x))

    def _flatten_layers(self):
        layers = self.layer._flatten_layers()
        return [layer for layer in layers if not isinstance(layer, BlockDiagonal)]
