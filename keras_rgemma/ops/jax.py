"""Tells devices apart, and keeps programs with kernels to those that the kernels are made for."""

import contextlib
import contextvars
import functools
from collections.abc import Iterator
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

_NAMES = {"tpu": "TPUs", "cuda": "GPUs of NVIDIA since Ampere"}

_target = contextvars.ContextVar("target", default=None)


@contextlib.contextmanager
def compiling_for(platform: str, capability: tuple[int, int] | None = None) -> Iterator[None]:
    """Lets operations choose their implementations for a device that is not there.

    For programs that are compiled inside of a `with` block and run elsewhere, if at all.

    Args:
        platform: str, "cpu", "gpu" or "tpu".
        capability: pair of ints, the compute capability of a GPU of NVIDIA, or None.
    """
    token = _target.set((platform, capability))
    try:
        yield
    finally:
        _target.reset(token)


def target_platform() -> str:
    """Returns the platform that programs are compiled for, "cpu", "gpu" or "tpu"."""
    target = _target.get()
    return target[0] if target else jax.default_backend()


def cuda_capability() -> tuple[int, ...] | None:
    """Returns the compute capability of the GPU that JAX computes on, a pair of ints, or None.

    From (8, 0) on XLA has Triton.
    """
    if target := _target.get():
        return target[1]
    device = jax.devices()[0]
    if device.platform != "gpu" or "cuda" not in device.client.platform_version:
        return None
    return tuple(map(int, device.compute_capability.split(".")))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def only_on(x: jax.Array, operation: str, implementation: str, platform: str) -> jax.Array:
    """Returns x; in a program for another device this is an error, with what to do instead.

    No gradient goes through it. A program knows its device when it is lowered, not before.

    Args:
        x: array.
        operation, implementation: str, their names.
        platform: str, "tpu" or "cuda", the devices that it runs on.
    """
    names = {"operation": operation, "implementation": implementation, "platform": platform}
    return _only_on.bind(x, **names)


_only_on = Primitive("only_on")
_only_on.def_abstract_eval(lambda x, **_: x)
batching.defvectorized(_only_on)


def _lower(context: Any, x: Any, operation: str, implementation: str, platform: str) -> list[Any]:
    platforms = context.platforms or context.module_context.platforms
    if set(platforms) == {platform}:
        return [x]
    raise ValueError(
        f"The implementation {implementation!r} of {operation!r} runs on {_NAMES[platform]}. "
        f"Received: a program for {tuple(platforms)}. Choose 'auto', which does without it there. "
        f"(Tests run it on any device: its function below keras_rgemma.ops.{operation}.jax takes "
        "`interpret`.)"
    )


mlir.register_lowering(_only_on, _lower)
