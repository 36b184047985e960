"""Computes the linear recurrence by Triton kernels, as operators that PyTorch can compile."""

import functools
import importlib
import importlib.util
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch

KERNELS = "keras_rgemma.ops.linear_recurrence.torch.triton_kernels"
# A thread holds its steps in registers: two values a step forwards, three backwards. Two programs
# of eight warps fit a multiprocessor of any GPU with at most 128 registers a thread.
SPANS, CHANNELS, STEPS, GRADIENT_STEPS = 8, 32, 32, 16
# A product and a sum are one operation with one rounding, as they are in PyTorch's `addcmul`.
OPTIONS: dict[str, Any] = {"num_warps": SPANS, "maxnreg": 128, "enable_fp_fusion": True}
HALF_OR_FLOAT32 = (torch.float32, torch.bfloat16, torch.float16)


@functools.cache
def _kernels() -> ModuleType:
    """Imports the kernels. Triton is slow to import, and needed by those alone who compute."""
    return importlib.import_module(KERNELS)


# A compiled program holds for one type of device, and Dynamo cannot read code that imports.
@torch.compiler.assume_constant_result
def problem_with(device: str) -> str | None:
    """Returns why Triton cannot run on a type of device ("cuda") and what to do, or None."""
    return find_problem(device)


@functools.cache  # it is asked for each layer of each token
def find_problem(device: str) -> str | None:
    """Computes `problem_with`."""
    if importlib.util.find_spec("triton") is None:
        return "The package `triton` is not installed: install it."
    if device == "cuda":
        if torch.version.cuda is None:
            return "This is a GPU of another maker than NVIDIA."
        if torch.cuda.get_device_capability() < (7, 0):
            return "This GPU is older than compute capability 7.0."
        return None
    if device == "cpu" and _kernels().IS_INTERPRETED:
        return None
    return (
        f"The tensors are on {device!r}: compute on a CUDA device (for tests of the kernels on a "
        "CPU, set TRITON_INTERPRET=1 before the first import of triton)."
    )


def _check_device(device: str) -> None:
    """Raises ValueError if the kernels cannot run on a type of device."""
    problem = problem_with(device)
    if problem is not None:
        raise ValueError(
            "The implementation 'triton' of 'linear_recurrence' cannot run here. "
            f"{problem} Or choose 'chunked', or 'auto' for the best that runs."
        )


def _check_shapes(x: torch.Tensor, a: torch.Tensor, initial_state: torch.Tensor) -> None:
    """Raises ValueError if the kernels would read beyond an array."""
    batch, length, width = x.shape
    if (a.shape, initial_state.shape) != ((batch, length, width), (batch, width)):
        shapes = ", ".join(str(tuple(y.shape)) for y in (x, a, initial_state))
        raise ValueError(
            f"x and a must be [B, T, L] and the initial state [B, L]. Received the shapes {shapes}."
        )


def _launch(kernel: Any, x: torch.Tensor, arguments: Sequence[torch.Tensor], steps: int) -> None:
    """Runs a kernel on all channels of x [B, T, L]."""
    batch, length, width = x.shape
    programs = batch * -(-width // CHANNELS)
    if programs:
        # Triton launches on the current device, which need not be that of the tensors.
        with torch.cuda.device_of(x):
            kernel[(programs,)](
                *arguments,
                length,
                WIDTH=width,
                SPANS=SPANS,
                STEPS=steps,
                CHANNELS=CHANNELS,
                **OPTIONS,
            )


@torch.library.custom_op("keras_rgemma::linear_recurrence", mutates_args=())
def _forward(
    x: torch.Tensor, a: torch.Tensor, initial_state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns float32 h [B, T, L] and its last step [B, L]."""
    x, a, initial_state = x.contiguous(), a.contiguous(), initial_state.contiguous()
    h_BTL, last_BL = _outputs(x, a, initial_state)
    arguments = (x, a, initial_state, h_BTL, last_BL)
    _launch(_kernels().linear_recurrence_kernel, x, arguments, STEPS)
    return h_BTL, last_BL


@_forward.register_fake
def _outputs(
    x: torch.Tensor, a: torch.Tensor, initial_state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    h_BTL = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    return h_BTL, torch.empty(initial_state.shape, dtype=torch.float32, device=x.device)


@torch.library.custom_op("keras_rgemma::linear_recurrence_gradient", mutates_args=())
def _backward(
    h_gradient: torch.Tensor,
    last_gradient: torch.Tensor,
    a: torch.Tensor,
    initial_state: torch.Tensor,
    h: torch.Tensor,
    x_dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the gradients of x, a and the initial state, in their dtypes."""
    inputs = [y.contiguous() for y in (h_gradient, last_gradient, a, initial_state, h)]
    outputs = _gradients(h_gradient, last_gradient, a, initial_state, h, x_dtype)
    kernel = _kernels().linear_recurrence_gradient_kernel
    _launch(kernel, h, (*inputs, *outputs), GRADIENT_STEPS)
    return outputs


@_backward.register_fake
def _gradients(
    h_gradient: torch.Tensor,
    last_gradient: torch.Tensor,
    a: torch.Tensor,
    initial_state: torch.Tensor,
    h: torch.Tensor,
    x_dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return (
        torch.empty(h.shape, dtype=x_dtype, device=h.device),
        torch.empty(h.shape, dtype=a.dtype, device=h.device),
        torch.empty(initial_state.shape, dtype=torch.float32, device=h.device),
    )


def _save(
    ctx: Any,
    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    output: tuple[torch.Tensor, torch.Tensor],
) -> None:
    x, a, initial_state = inputs
    ctx.x_dtype = x.dtype
    ctx.save_for_backward(a, initial_state, output[0])


def _differentiate(
    ctx: Any, h_gradient: torch.Tensor, last_gradient: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    a, initial_state, h_BTL = ctx.saved_tensors
    return _backward(h_gradient, last_gradient, a, initial_state, h_BTL, ctx.x_dtype)


_forward.register_autograd(_differentiate, setup_context=_save)


def linear_recurrence(
    x: torch.Tensor, a: torch.Tensor, initial_state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes what `ops.linear_recurrence` does, on a CUDA device.

    One pass: x and a are read once, in half precision if they come in it, and h is written once.
    """
    device = x.device.type
    if device != "meta":  # where only shapes are computed
        _check_device(device)
    if x.shape[1] == 1:  # one operation, where an operator of our own costs more than its kernel
        h_BL = torch.addcmul(x[:, 0].float(), a[:, 0].float(), initial_state)
        return h_BL[:, None], h_BL
    _check_shapes(x, a, initial_state)
    x, a = (y if y.dtype in HALF_OR_FLOAT32 else y.float() for y in (x, a))
    return _forward(x, a, initial_state)
