"""The residual block, one layer of the model, and the layers of a whole configuration."""

import keras
from keras import ops

from keras_rgemma.backend import bound
from keras_rgemma.config import RECURRENT
from keras_rgemma.layers.gated_mlp import GatedMLP
from keras_rgemma.layers.local_attention import LocalAttention
from keras_rgemma.layers.recurrent_block import RecurrentBlock
from keras_rgemma.layers.rms_norm import RMSNorm
from keras_rgemma.shapes import check_same_rows


@keras.saving.register_keras_serializable(package="keras_rgemma")
class ResidualBlock(keras.layers.Layer):
    """`r = x + temporal(norm(x)); y = r + mlp(norm(r))`.

    Griffin (arXiv 2402.19427), section 2.1 and figure 2a. The temporal block is a
    `RecurrentBlock` (at `recurrent_block`) or a `LocalAttention` (at `attention_block`).

    Args:
        block_type: "recurrent" or "attention".
        temporal: dict, the arguments of the temporal block.
        mlp: dict, the arguments of `GatedMLP`.
        layer_norm_epsilon: float.
        dropout: float, the rate at which the outputs of both sublayers are dropped in training.
        gradient_checkpointing: bool, whether the backward pass computes the activations inside of
            both sublayers again instead of keeping them.
        **kwargs: of `keras.layers.Layer`.

    Call arguments:
        x: float [B, T, D].
        positions: int32 [B, T], the place of each token in its document, -1 at pads. None: every
            row is one document that begins at its first token.
        state: None, or the layer's `RecurrentState` or `AttentionState`.
        return_state: bool.

    Returns:
        float [B, T, D], or with `return_state` a pair of it and the new state.
    """

    def __init__(
        self,
        block_type,
        temporal,
        mlp,
        layer_norm_epsilon=1e-6,
        dropout=0.0,
        gradient_checkpointing=False,
        **kwargs,
    ):
        # Without autocast the float32 part of a state stays float32 in mixed precision.
        super().__init__(autocast=False, **kwargs)
        self.block_type = block_type
        self.temporal = dict(temporal)
        self.mlp = dict(mlp)
        self.layer_norm_epsilon = layer_norm_epsilon
        self.dropout = dropout
        self.gradient_checkpointing = gradient_checkpointing
        dtype = self.dtype_policy
        self.temporal_pre_norm = RMSNorm(layer_norm_epsilon, name="temporal_pre_norm", dtype=dtype)
        if block_type == RECURRENT:
            self.recurrent_block = RecurrentBlock(**temporal, name="recurrent_block", dtype=dtype)
        else:
            self.attention_block = LocalAttention(**temporal, name="attention_block", dtype=dtype)
        self.channel_pre_norm = RMSNorm(layer_norm_epsilon, name="channel_pre_norm", dtype=dtype)
        self.mlp_block = GatedMLP(**mlp, name="mlp_block", dtype=dtype)
        self.residual_dropout = keras.layers.Dropout(dropout, name="residual_dropout", dtype=dtype)

    @property
    def temporal_block(self):
        """The recurrent or the attention block, whichever this layer has."""
        return self.recurrent_block if self.block_type == RECURRENT else self.attention_block

    def build(self, input_shape):
        self.temporal_pre_norm.build(input_shape)
        self.temporal_block.build(input_shape)
        self.channel_pre_norm.build(input_shape)
        self.mlp_block.build(input_shape)
        self.built = True

    def call(self, x, positions=None, state=None, return_state=False, training=None):
        if positions is None:
            ones = ops.ones_like(x[:, :, 0], dtype="int32")
            positions = ops.cumsum(ones, axis=1) - 1
        check_same_rows(tuple(x.shape[:2]), tuple(positions.shape))
        x = ops.cast(x, self.compute_dtype)
        # A new function each time: JAX keeps the trace of one that it knows, and with it the
        # weights that were read then.
        recomputes = self.gradient_checkpointing and training

        def recomputed(function):
            return keras.remat(bound(function)) if recomputes else function

        def mix(x, *flat_state):  # whose gradients TensorFlow would lose if it were not an argument
            before = keras.tree.pack_sequence_as(state, flat_state) if flat_state else None
            x = self.temporal_pre_norm(x)
            return self.temporal_block(x, positions, state=before, return_state=return_state)

        mixed = recomputed(mix)(x, *([] if state is None else keras.tree.flatten(state)))
        if return_state:
            mixed, state = mixed
        # Dropout stays outside of what is recomputed: its seed moves on once.
        x = x + self.residual_dropout(mixed, training=training)
        fed = recomputed(lambda x: self.mlp_block(self.channel_pre_norm(x)))(x)
        x = x + self.residual_dropout(fed, training=training)
        return (x, state) if return_state else x

    def compute_output_spec(self, x, positions=None, state=None, return_state=False, training=None):
        if return_state:
            return super().compute_output_spec(x, positions, state, return_state, training)
        # Known without a trace, which makes deep models quick to build.
        return keras.KerasTensor(x.shape, self.compute_dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "block_type": self.block_type,
            "temporal": self.temporal,
            "mlp": self.mlp,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "dropout": self.dropout,
            "gradient_checkpointing": self.gradient_checkpointing,
        }


def residual_blocks(config, dtype):
    """The list of `ResidualBlock`s of an `RGemmaConfig`."""
    output_variance = 2.0 / config.num_layers
    recurrent = {
        "lru_dim": config.recurrence_width,
        "num_blocks": config.num_query_heads,
        "conv_width": config.conv_width,
        "activation": config.activation,
        "output_variance": output_variance,
    }
    attention = {
        "num_query_heads": config.num_query_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.key_size,
        "sliding_window_size": config.sliding_window_size,
        "rope_max_wavelength": config.rope_max_wavelength,
        "rotated_size": config.rotated_size,
        "output_variance": output_variance,
    }
    mlp = {
        "intermediate_dim": config.intermediate_dim,
        "activation": config.activation,
        "output_variance": output_variance,
    }
    return [
        ResidualBlock(
            layer_type,
            temporal=recurrent if layer_type == RECURRENT else attention,
            mlp=mlp,
            layer_norm_epsilon=config.layer_norm_epsilon,
            dropout=config.dropout,
            gradient_checkpointing=config.gradient_checkpointing,
            dtype=dtype,
            name=f"block_{i}",
        )
        for i, layer_type in enumerate(config.layer_types)
    ]
