"""Defines the residual block and makes the residual blocks of a whole configuration."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import keras
from keras import ops

from keras_rgemma.backend import keep_choices
from keras_rgemma.config import RECURRENT, RGemmaConfig
from keras_rgemma.layers.binding import unchanged
from keras_rgemma.layers.gated_mlp import GatedMLP
from keras_rgemma.layers.local_attention import LocalAttention
from keras_rgemma.layers.recurrent_block import RecurrentBlock
from keras_rgemma.layers.rms_norm import RMSNorm
from keras_rgemma.ops.places import Places, places_of
from keras_rgemma.shapes import check_same_rows
from keras_rgemma.sharding.activations import constrain
from keras_rgemma.state.records import LayerState
from keras_rgemma.types import Bind, Shape, Tensor


@keras.saving.register_keras_serializable(package="keras_rgemma")
class ResidualBlock(keras.layers.Layer):
    """Computes `r = x + temporal(norm(x)); y = r + mlp(norm(r))`.

    Griffin (arXiv 2402.19427), section 2.1 and figure 2a. The temporal block is a
    `RecurrentBlock` (at `recurrent_block`) or a `LocalAttention` (at `attention_block`).

    Args:
        block_type: "recurrent" or "attention".
        temporal: dict, the arguments of the temporal block.
        mlp: dict, the arguments of `GatedMLP`.
        layer_norm_epsilon: float.
        dropout: float, the dropout rate of the outputs of both sublayers in training.
        gradient_checkpointing: bool, whether the backward pass recomputes all activations of the
            block; with dropout, those inside of each sublayer.
        **kwargs: of `keras.layers.Layer`.

    Call arguments:
        x: float [B, T, D].
        places: `Places` of the tokens, or their positions int32 [B, T], -1 at pads. None: every
            row is one document that begins at its first token.
        state: None, or the layer's `RecurrentState` or `AttentionState`.
        return_state: bool.

    Returns:
        float [B, T, D], or with `return_state` a pair of it and the new state.
    """

    def __init__(
        self,
        block_type: str,
        temporal: Mapping[str, Any],
        mlp: Mapping[str, Any],
        layer_norm_epsilon: float = 1e-6,
        dropout: float = 0.0,
        gradient_checkpointing: bool = False,
        **kwargs: Any,
    ) -> None:
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
        with keras.RematScope(mode=None):  # JAX would take `training` for a tensor there
            self.residual_dropout = keras.layers.Dropout(
                dropout, name="residual_dropout", dtype=dtype
            )

    @property
    def temporal_block(self) -> RecurrentBlock | LocalAttention:
        """Returns the recurrent or the attention block of the layer."""
        return self.recurrent_block if self.block_type == RECURRENT else self.attention_block

    def build(self, input_shape: Shape) -> None:
        self.temporal_pre_norm.build(input_shape)
        self.temporal_block.build(input_shape)
        self.channel_pre_norm.build(input_shape)
        self.mlp_block.build(input_shape)
        self.built = True

    def rematerialized_call(
        self, layer_call: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Callable[..., Any]:
        is_chosen = super().rematerialized_call(layer_call, *args, **kwargs) is not layer_call
        return functools.partial(self._call, _remat) if is_chosen else layer_call

    def call(
        self,
        x: Tensor,
        places: Places | Tensor | None = None,
        state: LayerState | None = None,
        return_state: bool = False,
        training: bool | None = None,
    ) -> Tensor | tuple[Tensor, LayerState]:
        recompute = _remat if self.gradient_checkpointing and training else unchanged
        return self._call(recompute, x, places, state, return_state, training)

    def _call(
        self,
        recompute: Callable[[Callable[..., Any]], Callable[..., Any]],
        x: Tensor,
        places: Places | Tensor | None = None,
        state: LayerState | None = None,
        return_state: bool = False,
        training: bool | None = None,
    ) -> Tensor | tuple[Tensor, LayerState]:
        if places is None:
            ones = ops.ones_like(x[:, :, 0], dtype="int32")
            places = ops.cumsum(ones, axis=1) - 1
        places = places_of(places)
        state = self._in_own_dtypes(state)
        check_same_rows(tuple(x.shape[:2]), tuple(places.positions.shape))
        # Dropout is not recomputed, so that its seed moves on once.
        whole, parts = (unchanged, recompute) if self.dropout else (recompute, unchanged)
        block = self.bound(
            unchanged,
            drop=lambda x: self.residual_dropout(x, training=training),
            recompute=parts,
        )
        x = ops.cast(x, self.compute_dtype)
        return with_recomputation(whole, block, x, places, state, return_state)

    def _in_own_dtypes(self, state: LayerState | None) -> LayerState | None:
        """Returns a state in the dtypes of this layer's; a wrapper around it may have cast it."""
        if state is None:
            return None
        return type(state)(
            **{
                name: ops.cast(x, "float32" if name == "recurrence" else self.compute_dtype)
                for name, x in state._asdict().items()
            }
        )

    def bound(
        self,
        bind: Bind,
        drop: Callable[[Tensor], Tensor] = unchanged,
        recompute: Callable[[Callable[..., Any]], Callable[..., Any]] = unchanged,
    ) -> Callable[..., Any]:
        """Returns the function of this layer with bound parts, see `binding.unchanged`.

        Args:
            bind: function of a part.
            drop: dropout, a function of a sublayer's output.
            recompute: as of `residual_block`.
        """
        return functools.partial(
            residual_block,
            temporal_pre_norm=bind(self.temporal_pre_norm),
            temporal_block=bind(self.temporal_block),
            channel_pre_norm=bind(self.channel_pre_norm),
            mlp_block=bind(self.mlp_block),
            drop=drop,
            recompute=recompute,
        )

    def compute_output_spec(
        self,
        x: Tensor,
        places: Any = None,
        state: Any = None,
        return_state: bool = False,
        training: bool | None = None,
    ) -> Any:
        if return_state:
            return super().compute_output_spec(x, places, state, return_state, training)
        # Without a trace of the layer, deep models are quick to build.
        return keras.KerasTensor(x.shape, self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "block_type": self.block_type,
            "temporal": self.temporal,
            "mlp": self.mlp,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "dropout": self.dropout,
            "gradient_checkpointing": self.gradient_checkpointing,
        }


def _remat(function: Callable[..., Any]) -> Callable[..., Any]:
    """Applies `keras.remat` to a function, which then keeps its choice of implementations."""
    return keras.remat(keep_choices(function))


def with_recomputation(
    recompute: Callable[[Callable[..., Any]], Callable[..., Any]],
    function: Callable[..., Any],
    x: Tensor,
    places: Places,
    state: LayerState | None,
    return_state: bool,
) -> Any:
    """Calls a function of these arguments after the first, which may recompute its activations.

    Args:
        recompute: function that makes a function recompute its activations, or `unchanged`.
        function: function of x, places, state and `return_state`.
        x, places, state, return_state: as of `ResidualBlock`.
    """

    # A new function in each call: JAX keeps the trace of a function that it knows, with the weights
    # of that time. TensorFlow would lose the gradients of a state that is no argument.
    def run(x_BTD: Tensor, *flat_state: Tensor) -> Any:
        before = keras.tree.pack_sequence_as(state, flat_state) if flat_state else state
        return function(x_BTD, places, state=before, return_state=return_state)

    is_argument = recompute is not unchanged and state is not None
    return recompute(run)(x, *(keras.tree.flatten(state) if is_argument else ()))


def residual_block(
    x: Tensor,
    places: Places,
    state: LayerState | None = None,
    return_state: bool = False,
    *,
    temporal_pre_norm: Callable[[Tensor], Tensor],
    temporal_block: Callable[..., Any],
    channel_pre_norm: Callable[[Tensor], Tensor],
    mlp_block: Callable[[Tensor], Tensor],
    drop: Callable[[Tensor], Tensor] = unchanged,
    recompute: Callable[[Callable[..., Any]], Callable[..., Any]] = unchanged,
) -> Tensor | tuple[Tensor, LayerState | None]:
    """Computes `ResidualBlock` with two norms, a temporal block and an MLP.

    Args:
        x, places, state, return_state: as of `ResidualBlock`.
        temporal_pre_norm, channel_pre_norm, mlp_block: functions of [B, T, D].
        temporal_block: function of x, places, state and `return_state`.
        drop: dropout, a function of a sublayer's output.
        recompute: function that makes a function recompute its activations, as `keras.remat`.
    """

    def temporal(x_BTD: Tensor, *args: Any, **kwargs: Any) -> Any:
        return temporal_block(temporal_pre_norm(x_BTD), *args, **kwargs)

    def channel(x_BTD: Tensor) -> Tensor:
        return mlp_block(channel_pre_norm(x_BTD))

    x = constrain(x, "BTD")
    temporal_BTD = with_recomputation(recompute, temporal, x, places, state, return_state)
    if return_state:
        temporal_BTD, state = temporal_BTD
    residual_BTD = constrain(x + drop(temporal_BTD), "BTD")
    out_BTD = residual_BTD + drop(recompute(channel)(residual_BTD))
    return (out_BTD, state) if return_state else out_BTD


def residual_blocks(
    config: RGemmaConfig, dtype: str | keras.DTypePolicy | None
) -> list[ResidualBlock]:
    """Makes the `ResidualBlock`s of an `RGemmaConfig`, a list."""
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
