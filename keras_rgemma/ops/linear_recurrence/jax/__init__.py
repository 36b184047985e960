"""Computes the linear recurrence on JAX."""

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax

from keras_rgemma.ops.jax import cuda_capability, target_platform
from keras_rgemma.ops.linear_recurrence.jax.loops import associative, loop

# A loop reads each byte once, which is the cost on a CPU; accelerators launch a kernel for each
# step of a loop, so they need the parallel form, or a kernel that has the loop inside.
BEST = {"cpu": "loop", "tpu": "pallas"}


def default_implementation() -> str:
    if (cuda_capability() or (0, 0)) >= (8, 0):
        return "by_device"
    return BEST.get(target_platform(), "associative")


def _kernels() -> ModuleType:
    # Imported at the first use: Pallas takes a moment that CPUs need not wait.
    return importlib.import_module("keras_rgemma.ops.linear_recurrence.jax.pallas")


def _by_device(*args: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Runs the kernel in programs for CUDA, which are not all on a machine that has it."""
    return jax.lax.platform_dependent(*args, cuda=IMPLEMENTATIONS["triton"], default=associative)


IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {
    "by_device": _by_device,
    "loop": loop,
    "associative": associative,
    "pallas": lambda *args: _kernels().linear_recurrence(*args),
    "triton": lambda *args: _kernels().triton(*args),
}
