"""Fuses what stands between the matrix products of a token into few kernels of a GPU."""

import functools
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import keras
import torch

from keras_rgemma.layers.activation import gated, gelu_tanh
from keras_rgemma.layers.causal_conv1d import causal_conv1d
from keras_rgemma.layers.rg_lru import DECAY_SCALE, rg_lru
from keras_rgemma.layers.rms_norm import rms_norm
from keras_rgemma.ops.linear_recurrence.torch import problem_with
from keras_rgemma.ops.places import Places
from keras_rgemma.ops.rope import apply_rotation

KERNELS = "keras_rgemma.generation.torch.triton_kernels"
BLOCK = 512  # elements of a program; a thread of four warps has four


def can_fuse(tensor: torch.Tensor) -> bool:
    """Returns whether a tensor is where the kernels run."""
    return tensor.is_cuda


def fused(part: Any, plain: Any) -> Any:
    """Returns the form of an operation that runs as one kernel.

    Args:
        part: what `bind` gets, see `layers.binding.unchanged`.
        plain: what `bind` returns, the operation for all that no kernel is made for.
    """
    if isinstance(part, keras.Variable | keras.layers.Layer) or part not in _FUSED:
        return plain
    return functools.partial(_FUSED[part], plain)


def runs_on(device: str) -> bool:
    """Returns whether the kernels run on a type of device, such as "cuda"."""
    return device == "cuda" and problem_with(device) is None


@functools.cache
def _kernels() -> ModuleType:
    """Imports the kernels. Triton is slow to import, and needed by those alone who compute."""
    return importlib.import_module(KERNELS)


def _launch(name: str, grid: tuple[int, ...], *args: Any, warps: int = 4, **constants: Any) -> None:
    """Runs a kernel on the device of its first argument."""
    with torch.cuda.device_of(args[0]):
        getattr(_kernels(), name)[grid](*args, **constants, num_warps=warps)


def _blocks(width: int) -> int:
    return -(-width // BLOCK)


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()


def _rms_norm(
    plain: Callable[..., Any], x: torch.Tensor, scale: torch.Tensor, epsilon: float
) -> torch.Tensor:
    width = x.shape[-1]
    if not can_fuse(x) or not x.numel():
        return plain(x, scale, epsilon)
    x, scale = x.contiguous(), scale.contiguous()
    y = torch.empty_like(x)
    rows, block = x.numel() // width, _power_of_two(width)
    warps = min(16, max(4, block // 512))
    _launch("rms_norm_kernel", (rows,), x, scale, y, epsilon, warps=warps, WIDTH=width, BLOCK=block)
    return y


def _mask_of(places: Places) -> tuple[torch.Tensor, bool]:
    """Returns what a kernel reads of the mask of one token a row: a tensor, and whether to."""
    if places.is_token is None:
        return places.positions, False
    return places.is_token.contiguous().view(torch.int8), True


def _rg_lru(
    plain: Callable[..., Any],
    x: torch.Tensor,
    places: Places,
    state: torch.Tensor | None = None,
    return_state: bool = False,
    **parts: Any,
) -> Any:
    is_step = return_state and state is not None and x.shape[1] == 1 and places.is_first is None
    if not is_step or not can_fuse(x):
        return plain(x, places, state, return_state, **parts)
    x_HBTK = parts["to_blocks"](x)
    x, input_gate, a_gate = (
        y.contiguous() for y in (x, parts["input_gate"](x_HBTK), parts["a_gate"](x_HBTK))
    )
    batch, _, width = x.shape
    h_B1L, new_BL = torch.empty_like(x), torch.empty_like(state, memory_format=_CONTIGUOUS)
    mask, has_mask = _mask_of(places)
    a_param, state = parts["a_param"].contiguous(), state.contiguous()
    inputs = (x, input_gate, a_gate, a_param, state, mask)
    constants = {"WIDTH": width, "HAS_MASK": has_mask, "BLOCK": BLOCK}
    grid = (batch, _blocks(width))
    _launch("rg_lru_kernel", grid, *inputs, h_B1L, new_BL, DECAY_SCALE, **constants)
    return h_B1L, new_BL


def _causal_conv1d(
    plain: Callable[..., Any],
    x: torch.Tensor,
    places: Places,
    state: torch.Tensor | None = None,
    return_state: bool = False,
    *,
    kernel: torch.Tensor,
    bias: torch.Tensor,
) -> Any:
    is_step = return_state and state is not None and x.shape[1] == 1
    if not is_step or not can_fuse(x):
        return plain(x, places, state, return_state, kernel=kernel, bias=bias)
    batch, reach, width = state.shape
    x = x.contiguous()
    y_B1L, new_BRL = torch.empty_like(x), torch.empty_like(state, memory_format=_CONTIGUOUS)
    mask, has_mask = _mask_of(places)
    state, kernel, bias = (y.contiguous() for y in (state, kernel, bias))
    inputs = (x, state, kernel, bias, mask)
    constants = {"WIDTH": width, "REACH": reach, "HAS_MASK": has_mask, "BLOCK": BLOCK}
    _launch("conv_kernel", (batch, _blocks(width)), *inputs, y_B1L, new_BRL, **constants)
    return y_B1L, new_BRL


def _apply_rotation(
    plain: Callable[..., Any], x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    half = rotation[0].shape[-1]
    if not can_fuse(x) or not x.numel() or half == 0:
        return plain(x, rotation)
    heads, size = x.shape[-2:]
    x, cos, sin = (y.contiguous() for y in (x, *rotation))
    y = torch.empty_like(x)
    constants = {"HEADS": heads, "SIZE": size, "HALF": half, "BLOCK": _power_of_two(size)}
    _launch("rope_kernel", (x.numel() // size,), x, cos, sin, y, warps=1, **constants)
    return y


def _gelu_tanh(plain: Callable[..., Any], x: torch.Tensor) -> torch.Tensor:
    return plain(x)  # `_gated` knows the activation by this function


def _gated(
    plain: Callable[..., Any],
    nonlinearity: Callable[[torch.Tensor], torch.Tensor],
    gate: torch.Tensor,
    x: torch.Tensor,
) -> torch.Tensor:
    is_gelu = isinstance(nonlinearity, functools.partial) and nonlinearity.func is _gelu_tanh
    if not is_gelu or not can_fuse(x) or not x.numel() or gate.dtype != x.dtype:
        return plain(nonlinearity, gate, x)
    gate, x = gate.contiguous(), x.contiguous()
    y = torch.empty_like(x)
    grid = (_blocks(x.numel()),)
    _launch("gated_gelu_kernel", grid, gate, x, y, x.numel(), BLOCK=BLOCK)
    return y


_CONTIGUOUS = torch.contiguous_format
_FUSED = {
    rms_norm: _rms_norm,
    rg_lru: _rg_lru,
    causal_conv1d: _causal_conv1d,
    apply_rotation: _apply_rotation,
    gelu_tanh: _gelu_tanh,
    gated: _gated,
}
