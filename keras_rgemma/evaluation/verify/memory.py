"""Estimates the memory that `verify` needs, and refuses what does not fit before it is loaded."""

import os
import pathlib
from types import ModuleType

from keras_rgemma.config import RGemmaConfig
from keras_rgemma.evaluation.verify.texts import Rows

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_MEMINFO = pathlib.Path("/proc/meminfo")
# Limits of a container: of cgroups, version 2.
_LIMIT, _USED = (pathlib.Path(f"/sys/fs/cgroup/memory.{x}") for x in ("max", "current"))
_PROGRAMS = 1_500_000_000  # bytes of a process with all packages, and of programs


def needed_bytes(config: RGemmaConfig, dtype: str, batches: dict[str, Rows]) -> int:
    """Estimates the bytes that one model needs while it is loaded and observed.

    The weights; the embedding once more, which is converted while it is loaded; logits of the
    tokens that are compared, in float32 and twice; and activations of the widest layer.

    Args:
        config: `RGemmaConfig`.
        dtype: str, of weights and computation.
        batches: dict of `Rows`, as of `Material`.

    Returns:
        int.
    """
    size = ITEM_BYTES[dtype]
    table = config.vocabulary_size * config.hidden_dim * size
    compared = max(len(rows.names) * len(rows.places) for rows in batches.values())
    tokens = max(rows.token_ids.size for rows in batches.values())
    logits = 2 * 4 * compared * config.vocabulary_size
    scores = 4 * config.num_query_heads * max(r.token_ids.shape[1] ** 2 for r in batches.values())
    activations = size * tokens * (6 * config.intermediate_dim + config.num_layers)
    return config.parameter_count * size + table + logits + 2 * scores + activations + _PROGRAMS


def free_bytes() -> int | None:
    """Returns the free memory of this machine or its container, int; None if it is not known."""
    free = []
    if _MEMINFO.is_file():
        fields = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        free.append(int(fields["MemAvailable"].split()[0]) * 1024)
    elif "SC_AVPHYS_PAGES" in os.sysconf_names:
        free.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    if _LIMIT.is_file() and (limit := _LIMIT.read_text().strip()).isdecimal():
        free.append(int(limit) - int(_USED.read_text()))
    return min(free, default=None)


def copies_on_cpu(config: RGemmaConfig, dtype: str, is_greedy: bool) -> int:
    """Estimates the bytes that DeepMind's code needs beside `needed_bytes` on a CPU.

    XLA multiplies there in float32 alone, and its programs copy all weights of half precision: the
    loop of their sampler keeps the copies of two programs.

    Args:
        config: `RGemmaConfig`.
        dtype: str, of weights and computation.
        is_greedy: bool, whether their sampler runs.

    Returns:
        int, 0 in float32.
    """
    copies = 0 if ITEM_BYTES[dtype] == 4 else 1 + is_greedy
    return copies * 4 * config.parameter_count


def check(needed: int, copies: int, device: ModuleType, dtype: str) -> None:
    """Raises an error if a model does not fit.

    Args:
        needed: int, bytes as of `needed_bytes`.
        copies: int, bytes as of `copies_on_cpu`; 0 for other code than DeepMind's.
        device: module of a backend in this folder.
        dtype: str, of the model.

    Raises:
        RuntimeError: the device or the machine has less memory.
    """
    is_cpu = device.is_cpu()
    found = free_bytes() if is_cpu else device.free_bytes()
    total = needed + copies * is_cpu
    if found is None or found >= total:
        return
    advice = "Use a machine with more memory."
    if is_cpu and copies:
        advice = "On a CPU --dtype float32 needs less. Or use a machine with more memory."
    elif ITEM_BYTES[dtype] == 4 and not is_cpu:
        advice = "Pass --dtype bfloat16, which needs half of it, or use one with more memory."
    raise RuntimeError(
        f"The model needs about {total / 1e9:.1f} GB in {dtype}, one implementation after the "
        f"other, and {device.device_name()} has {found / 1e9:.1f} GB free. {advice} With "
        "--no-memory-check it is tried all the same."
    )
