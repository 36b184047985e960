"""Describes the devices that programs are planned for: memory, published rates, topologies."""

import difflib
from collections.abc import Mapping
from typing import Any, NamedTuple

GIB = 1 << 30
# What JAX and libtpu read when they start, on a machine without a TPU.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",  # of arrays that the process makes
    "KERAS_BACKEND": "jax",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # a lock keeps other processes off a TPU: there is none
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}


class Gpu(NamedTuple):
    """Describes a GPU to XLA's compiler, which knows one by these numbers alone.

    Attributes:
        name: str, as the driver gives it.
        capability: pair of ints, the compute capability.
        cores: int, streaming multiprocessors.
        threads: int, that a core holds at once.
        shared: int, bytes of shared memory of a core.
        most_shared: int, bytes of it that a block may ask for.
        l2: int, bytes of the cache that all cores share.
        clock: float, GHz.
    """

    name: str
    capability: tuple[int, int]
    cores: int
    threads: int
    shared: int
    most_shared: int
    l2: int
    clock: float


class Device(NamedTuple):
    """Describes chips that a program runs on together.

    Attributes:
        chips: int, how many; of a v4, its TensorCores.
        platform: str of JAX, "tpu" or "cuda".
        memory: int, bytes of a chip that programs can use.
        flops: float, products and sums a second of a chip in half precision, as published.
        bandwidth: float, bytes a second between a chip and its memory, as published.
        link: float, bytes a second that a chip sends to others, as published, in one direction.
        topology: str that libtpu knows the chips by, or a `Gpu`.
        dtype: str, in which models run there.
    """

    chips: int
    platform: str
    memory: int
    flops: float
    bandwidth: float
    link: float
    topology: str | Gpu
    dtype: str = "bfloat16"


def _tpu(
    memory: float, flops: float, bandwidth: float, link: float, **topologies: tuple[int, str]
) -> dict[str, Device]:
    return {
        f"{name.replace('_', '-')}": Device(
            count, "tpu", int(memory * GIB), flops, bandwidth, link, topology
        )
        for name, (count, topology) in topologies.items()
    }


def _gpu(
    names: Mapping[str, int],
    memory: float,
    flops: float,
    bandwidth: float,
    link: float,
    dtype: str = "bfloat16",
    **gpu: Any,
) -> dict[str, Device]:
    # A context of CUDA and its libraries takes about half a gigabyte of each GPU.
    usable = int(memory * GIB) - GIB // 2
    return {
        name: Device(count, "cuda", usable, flops, bandwidth, link, Gpu(**gpu), dtype)
        for name, count in names.items()
    }


# The memory of a TPU is what its compiler gives to programs; that of a GPU what its driver counts.
DEVICES = {
    **_tpu(
        15.75,
        197e12,
        819e9,
        200e9,
        v5e_1=(1, "v5e:1x1"),
        v5e_4=(4, "v5e:2x2"),
        v5e_8=(8, "v5e:2x4"),
        v5e_16=(16, "v5e:4x4"),
    ),
    **_tpu(31.25, 918e12, 1640e9, 400e9, v6e_1=(1, "v6e:1x1"), v6e_8=(8, "v6e:2x4")),
    # libtpu describes the two cores of a v4 apart, with half of the chip's memory each.
    **_tpu(15.25, 275e12 / 2, 1228e9 / 2, 300e9 / 2, v4=(8, "v4:2x2x1")),
    **_tpu(95.74, 459e12, 2765e9, 600e9, v5p=(4, "v5p:2x2x1")),
    **_gpu(
        {"T4": 1, "2xT4": 2},
        15.0,
        65e12,
        320e9,
        16e9,
        dtype="float16",
        name="Tesla T4",
        capability=(7, 5),
        cores=40,
        threads=1024,
        shared=65536,
        most_shared=65536,
        l2=4 << 20,
        clock=1.59,
    ),
    **_gpu(
        {"L4": 1},
        22.5,
        121e12,
        300e9,
        32e9,
        name="NVIDIA L4",
        capability=(8, 9),
        cores=58,
        threads=1536,
        shared=102400,
        most_shared=101376,
        l2=48 << 20,
        clock=2.04,
    ),
    **_gpu(
        {"A100": 1},
        40.0,
        312e12,
        1555e9,
        300e9,
        name="NVIDIA A100-SXM4-40GB",
        capability=(8, 0),
        cores=108,
        threads=2048,
        shared=167936,
        most_shared=166912,
        l2=40 << 20,
        clock=1.41,
    ),
    **_gpu(
        {"H100": 1, "8xH100": 8},
        79.6,
        989e12,
        3352e9,
        450e9,
        name="NVIDIA H100 80GB HBM3",
        capability=(9, 0),
        cores=132,
        threads=2048,
        shared=233472,
        most_shared=232448,
        l2=50 << 20,
        clock=1.98,
    ),
}


def device_named(name: str) -> Device:
    """Returns a `Device` of `DEVICES`.

    Raises:
        ValueError: there is no such device.
    """
    if name in DEVICES:
        return DEVICES[name]
    by_lower = {known.lower(): known for known in DEVICES}
    near = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.3)
    hint = f" Did you mean {by_lower[near[0]]!r}?" if near else ""
    raise ValueError(f"Unknown device {name!r}.{hint} Programs are planned for {list(DEVICES)}.")
