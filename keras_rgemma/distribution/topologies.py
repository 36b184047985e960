"""Describes devices of other machines to JAX, so that their own compilers make programs for them.

TPUs need the package `libtpu`, GPUs JAX's plugin for CUDA; neither needs a device.
"""

import contextlib
from typing import Any

import jax
from jax.experimental import topologies

from keras_rgemma.distribution.devices import device_named
from keras_rgemma.ops.jax import compiling_for

_GPU = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: {shared} threads_per_core_limit: {threads} core_count: {cores}
  fpus_per_core: {fpus} block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: {bandwidth:.0f} l2_cache_size: {l2}
  clock_rate_ghz: {clock} device_memory_size: {memory}
  shared_memory_per_block_optin: {most_shared}
  cuda_compute_capability {{ major: {capability[0]} minor: {capability[1]} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 1 }}
device_description_str: "{name}"
"""


def chips_of(name: str) -> list[Any]:
    """Lists the chips of a device for programs that are compiled but not run.

    Args:
        name: str of `devices.DEVICES`.

    Returns:
        A list of `jax.Device`.
    """
    device = device_named(name)
    if device.platform == "tpu":
        # libtpu takes a whole host for granted, unless it is told of a part.
        bounds = {"chips_per_host_bounds": [1, 1, 1]} if device.chips == 1 else {}
        topology = topologies.get_topology_desc(
            platform="tpu", topology_name=device.topology, **bounds
        )
    else:
        gpu = device.topology
        # 64 products and sums a clock in a core of Turing and of A100, 128 in the others.
        fpus = 64 if gpu.capability in ((7, 5), (8, 0)) else 128
        topology = topologies.get_topology_desc(
            platform="cuda",
            topology_name="",
            topology=f"1x1x{device.chips}",
            target_config=_GPU.format(
                **gpu._asdict(), fpus=fpus, bandwidth=device.bandwidth, memory=device.memory
            ),
        )
    return list(topology.devices)


def sharding_of(name: str) -> jax.sharding.Sharding:
    """Returns the sharding of arrays that lie on a device of one chip, such as "v5e-1"."""
    (chip,) = chips_of(name)
    return jax.sharding.SingleDeviceSharding(chip)


def operations_for(name: str) -> contextlib.AbstractContextManager[None]:
    """Returns a context in which operations choose implementations as on a device.

    Args:
        name: str of `devices.DEVICES`.
    """
    device = device_named(name)
    if device.platform == "tpu":
        return compiling_for("tpu")
    return compiling_for("gpu", device.topology.capability)
