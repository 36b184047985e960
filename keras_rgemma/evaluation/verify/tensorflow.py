"""Describes the device of TensorFlow, and lets it multiply without shortcuts."""

import tensorflow as tf

PACKAGE = "tensorflow"


def full_precision() -> None:
    """Multiplies float32 in float32; GPUs would round the factors before."""
    tf.config.experimental.enable_tensor_float_32_execution(False)


def _accelerators() -> list:
    return [x for x in tf.config.list_physical_devices() if x.device_type in ("GPU", "TPU")]


def device_name() -> str:
    """Returns the name of the device, str."""
    if is_cpu():
        return "CPU"
    details = tf.config.experimental.get_device_details(_accelerators()[0])
    return details.get("device_name", _accelerators()[0].device_type)


def free_bytes() -> int | None:
    """Returns None: TensorFlow does not tell the free memory of a device."""
    return None


def is_cpu() -> bool:
    """Returns whether the device is a CPU, whose memory is that of the machine."""
    return not _accelerators()
