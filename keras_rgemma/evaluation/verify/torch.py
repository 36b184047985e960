"""Describes the device of PyTorch, and lets it multiply without shortcuts."""

import torch

PACKAGE = "torch"


def full_precision() -> None:
    """Multiplies float32 in float32; GPUs would round the factors before."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


def device_name() -> str:
    """Returns the name of the device, str."""
    return "CPU" if is_cpu() else torch.cuda.get_device_name()


def free_bytes() -> int | None:
    """Returns the free memory of an accelerator, int; None for a CPU."""
    return None if is_cpu() else torch.cuda.mem_get_info()[0]


def is_cpu() -> bool:
    """Returns whether the device is a CPU, whose memory is that of the machine."""
    return not torch.cuda.is_available()
