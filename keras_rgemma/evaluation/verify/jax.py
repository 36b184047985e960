"""Describes the device of JAX, and lets it multiply without shortcuts."""

import jax

PACKAGE = "jax"


def full_precision() -> None:
    """Multiplies float32 in float32; GPUs and TPUs would round the factors before."""
    jax.config.update("jax_default_matmul_precision", "highest")


def device_name() -> str:
    """Returns the name of the device, str."""
    device = jax.devices()[0]
    return "CPU" if device.platform == "cpu" else device.device_kind


def free_bytes() -> int | None:
    """Returns the free memory of an accelerator, int; None for a CPU, or where it is not known."""
    device = jax.devices()[0]
    stats = None if device.platform == "cpu" else device.memory_stats()
    return stats["bytes_limit"] - stats["bytes_in_use"] if stats else None


def is_cpu() -> bool:
    """Returns whether the device is a CPU, whose memory is that of the machine."""
    return jax.devices()[0].platform == "cpu"
