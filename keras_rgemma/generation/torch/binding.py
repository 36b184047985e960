"""Binds the layers of a model to raw tensors, for decoding on PyTorch.

A call of a Keras layer takes 0.1 to 0.2 ms, more than the matrix products of a small model. So each
layer is bound once: its `bound` method gives the wiring, its weights are raw tensors, and its
operations run few kernels. A layer of another type, such as a user's subclass or wrapper, is called
as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import torch
from torch.nn import functional

from keras_rgemma.backend import resolve
from keras_rgemma.generation.torch import gpu
from keras_rgemma.generation.torch.layout import is_turned_half, put_in_rows
from keras_rgemma.generation.torch.rounded import rounded_logits, rounded_product
from keras_rgemma.keras_internals.layers import embedding_arrays, int4_group_size
from keras_rgemma.layers import activation, block_diagonal, local_attention
from keras_rgemma.layers.block_diagonal import BlockDiagonal
from keras_rgemma.layers.causal_conv1d import CausalConv1D
from keras_rgemma.layers.embedding import ReversibleEmbedding
from keras_rgemma.layers.gated_mlp import GatedMLP
from keras_rgemma.layers.int4 import is_fast
from keras_rgemma.layers.linear import Linear
from keras_rgemma.layers.local_attention import LocalAttention
from keras_rgemma.layers.lora import LinearMapParts
from keras_rgemma.layers.recurrent_block import RecurrentBlock
from keras_rgemma.layers.residual_block import ResidualBlock
from keras_rgemma.layers.rg_lru import RGLRU
from keras_rgemma.layers.rms_norm import RMSNorm, rms_norm
from keras_rgemma.ops.bounded_sqrt import bounded_sqrt
from keras_rgemma.ops.linear_recurrence import linear_recurrence
from keras_rgemma.ops.places import Places
from keras_rgemma.ops.rope import apply_rotation
from keras_rgemma.ops.window_attention import updated_ring, window_attention, with_token
from keras_rgemma.ops.window_attention.torch import write_slots_in_place
from keras_rgemma.state.records import AttentionState
from keras_rgemma.types import Bind


def bind(part: Any, bind_part: Bind | None = None) -> Any:
    """Returns the fast form of a layer's part for decoding.

    Args:
        part: a sublayer, a weight or an operation, see `layers.binding.unchanged`.
        bind_part: function that binds the parts of a layer; None for `bind` itself.
    """
    if isinstance(part, keras.Variable):
        return part.value
    if part in CHOSEN:  # a program is made anew when the choice changes
        return functools.partial(part, implementation=resolve(CHOSEN[part]))
    if not isinstance(part, keras.layers.Layer):
        return OPERATIONS.get(part, part)
    if "call" in vars(part):  # the call of this one layer was replaced
        return part
    if type(part) in WIRED:
        return part.bound(bind_part or bind)
    return MAPS[type(part)](part) if type(part) in MAPS else part


def bind_in_place(part: Any) -> Any:
    """Returns the form of a part as `bind` does; the form writes ring buffers in place."""
    return _write_ring if part is updated_ring else bind(part, bind_in_place)


def bind_fused(part: Any) -> Any:
    """Returns the form of a part as `bind` does, in few kernels of a GPU."""
    return gpu.fused(part, bind(part, bind_fused))


def bind_fused_in_place(part: Any) -> Any:
    """Returns the form of a part as `bind_fused` does; the form writes ring buffers in place."""
    return _write_ring if part is updated_ring else gpu.fused(part, bind(part, bind_fused_in_place))


def _quantized(layer: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """Binds a quantized linear layer: a function of what it takes."""
    parts = layer.linear_map_parts()
    dtype = getattr(torch, layer.compute_dtype)
    weights = {name: variable.value for name, variable in parts.variables.items()}
    product = _rounded_product(layer, weights, dtype)
    if product is None and layer.compute_dtype == layer.variable_dtype:
        return layer.linear_map()
    if product is None:
        # It holds weights in another dtype, copies of them: training in between would not show.
        return lambda x: layer.linear_map()(x)
    bias, low_rank = _value(parts.variables.get("bias"), dtype), _low_rank(parts, dtype)
    if not isinstance(layer, BlockDiagonal):
        return _linear_map(dtype, product, bias, low_rank)
    bias_HJ = None if bias is None else lambda: bias()[:, 0]
    on_rows = _linear_map(dtype, product, bias_HJ, low_rank)
    return lambda x_HBTI: on_rows(x_HBTI.flatten(1, 2)).unflatten(1, x_HBTI.shape[1:3])


def _linear_map(
    dtype: torch.dtype,
    product: Callable[[torch.Tensor], torch.Tensor],
    bias: Callable[[], torch.Tensor] | None,
    low_rank: Callable[[torch.Tensor], torch.Tensor] | None,
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Returns a function of x that adds the bias and LoRA's product, if any, to a product."""

    def run(x: torch.Tensor) -> torch.Tensor:
        x = x.to(dtype)
        y = product(x) if bias is None else product(x) + bias()
        return y if low_rank is None else y + low_rank(x)

    return run


def _rounded_product(
    layer: Any, weights: dict[str, torch.Tensor], dtype: torch.dtype
) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Returns the fast product of a layer in int8 or int4 on a CPU, or None."""
    if layer.activation is not None and layer.activation is not keras.activations.linear:
        return None
    return rounded_product(
        layer.quantization_mode,
        weights,
        shape=layer.weight_shape,
        quantizer=getattr(layer, "inputs_quantizer", None),
        group_size=int4_group_size(layer),
        dtype=dtype,
    )


def _linear(layer: Linear) -> Callable[[torch.Tensor], torch.Tensor]:
    """Binds a linear layer: a function of [..., I], with LoRA as a second product."""
    if layer.quantization_mode:
        return _quantized(layer)
    dtype, kernel, bias, low_rank = _plain_parts(layer)
    multiply = resolve("matmul")
    matrix = layer.linear_map_parts().variables["kernel"].value
    waits = matrix.dtype == dtype and is_turned_half(matrix)

    def product(x: torch.Tensor) -> torch.Tensor:
        if waits and x.numel() == x.shape[-1] and not torch.compiler.is_compiling():
            put_in_rows(matrix)
        return multiply(x, kernel(), None if bias is None else bias(), False)

    return _linear_map(dtype, product, None, low_rank)


def _block_diagonal(layer: BlockDiagonal) -> Callable[[torch.Tensor], torch.Tensor]:
    """Binds a block-diagonal layer: a function of blocks [H, B, T, I]."""
    if layer.quantization_mode:
        return _quantized(layer)
    dtype, kernel, bias, low_rank = _plain_parts(layer)

    def run(x_HBTI: torch.Tensor) -> torch.Tensor:
        x_HNI = x_HBTI.to(dtype).flatten(1, 2)
        y_HNJ = torch.baddbmm(bias()[:, 0], x_HNI, kernel())
        if low_rank is not None:
            y_HNJ = y_HNJ + low_rank(x_HNI)
        return y_HNJ.unflatten(1, x_HBTI.shape[1:3])

    return run


def _plain_parts(
    layer: Any,
) -> tuple[torch.dtype, Any, Any, Callable[[torch.Tensor], torch.Tensor] | None]:
    """Returns the dtype of a layer's products, and functions for its kernel, bias and LoRA."""
    parts = layer.linear_map_parts()
    dtype = getattr(torch, layer.compute_dtype)
    kernel, bias = (_value(parts.variables.get(name), dtype) for name in ("kernel", "bias"))
    return dtype, kernel, bias, _low_rank(parts, dtype)


def _value(
    variable: keras.Variable | None, dtype: torch.dtype
) -> Callable[[], torch.Tensor] | None:
    """Returns a function without arguments that reads the current tensor of a variable."""
    if variable is None:
        return None
    tensor = variable.value
    return (lambda: tensor) if tensor.dtype == dtype else (lambda: tensor.to(dtype))


def _low_rank(
    parts: LinearMapParts, dtype: torch.dtype
) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Returns the function of x that computes LoRA's product, or None without LoRA."""
    if parts.lora_scale is None:
        return None
    a, b = (parts.variables[f"lora_kernel_{x}"].value for x in "ab")
    return lambda x: (x @ a.to(dtype)) @ (parts.lora_scale * b).to(dtype)


def _embedding(layer: ReversibleEmbedding) -> Callable[..., torch.Tensor]:
    """Binds an embedding: a function of token ids, or with `reverse` of hidden states."""
    is_plain = layer.tie_weights and not (layer.mask_zero or layer.reverse_dtype)
    if not is_plain or layer.lora_enabled:
        return layer
    if layer.quantization_mode:
        return _rounded_embedding(layer)
    embeddings_VD = _value(layer.embeddings, getattr(torch, layer.compute_dtype))
    cap, multiply, soft_cap = layer.logit_soft_cap, resolve("matmul"), resolve("soft_cap")

    def run(x: torch.Tensor, reverse: bool = False) -> torch.Tensor:
        if not reverse:
            return functional.embedding(x, embeddings_VD())
        logits = multiply(x, embeddings_VD(), None, True)
        return logits if cap is None else soft_cap(logits, cap)

    return run


def _rounded_embedding(layer: ReversibleEmbedding) -> Callable[..., torch.Tensor]:
    """Binds an embedding in int8 or int4: its logits alone take much of a token's time."""
    dtype, cap = getattr(torch, layer.compute_dtype), layer.logit_soft_cap
    mode, quantizer = layer.quantization_mode, layer.inputs_quantizer
    soft_cap = resolve("soft_cap")
    size, arrays = int4_group_size(layer), embedding_arrays(layer)
    is_int8 = mode == "int8" and type(quantizer) is keras.quantizers.AbsMaxQuantizer
    is_int4 = mode == "int4" and is_fast(quantizer, arrays.get("embeddings_zero"), size)
    is_int4 = is_int4 and layer.output_dim % (size if size < layer.output_dim else 2) == 0
    if not (is_int8 or is_int4) or arrays["embeddings"].device.type != "cpu":
        return layer

    def run(x: torch.Tensor, reverse: bool = False) -> torch.Tensor:
        if not reverse:
            return layer(x)
        logits = rounded_logits(mode, x.to(dtype), arrays, quantizer)
        return logits if cap is None else soft_cap(logits, cap)

    return run


def _rms_norm(x: torch.Tensor, scale: torch.Tensor, epsilon: float) -> torch.Tensor:
    scale_D = 1.0 + scale.float()
    return functional.rms_norm(x.float(), scale_D.shape, scale_D, epsilon).to(x.dtype)


def _to_blocks(x_BTL: torch.Tensor, num_blocks: int) -> torch.Tensor:
    return x_BTL.unflatten(-1, (num_blocks, -1)).permute(2, 0, 1, 3)


def _from_blocks(x_HBTK: torch.Tensor) -> torch.Tensor:
    return x_HBTK.permute(1, 2, 0, 3).flatten(2)


def _split_heads(x: torch.Tensor, head_dim: int) -> torch.Tensor:
    return x.unflatten(-1, (-1, head_dim))


def _join_heads(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(-2)


def _write_ring(
    state: AttentionState, key: torch.Tensor, value: torch.Tensor, places: Places, window: int
) -> AttentionState:
    """Writes one new token a row into the ring buffer in place, as `updated_ring` into a copy."""
    return with_token(state, key, value, places, window, write_slots_in_place)


OPERATIONS: dict[Any, Callable[..., torch.Tensor]] = {
    activation.gelu_tanh: lambda x: functional.gelu(x, approximate="tanh"),
    activation.gelu: functional.gelu,
    bounded_sqrt: torch.sqrt,
    rms_norm: _rms_norm,
    block_diagonal.to_blocks: _to_blocks,
    block_diagonal.from_blocks: _from_blocks,
    local_attention.split_heads: _split_heads,
    local_attention.join_heads: _join_heads,
}
CHOSEN: dict[Callable[..., Any], str] = {
    apply_rotation: "rope",
    linear_recurrence: "linear_recurrence",
    window_attention: "window_attention",
}
MAPS: dict[type, Callable[[Any], Callable[..., torch.Tensor]]] = {
    Linear: _linear,
    BlockDiagonal: _block_diagonal,
    ReversibleEmbedding: _embedding,
}
WIRED = {CausalConv1D, GatedMLP, LocalAttention, RGLRU, RMSNorm, RecurrentBlock, ResidualBlock}
