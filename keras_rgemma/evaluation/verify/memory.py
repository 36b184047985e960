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


def check(needed: int, device: ModuleType, dtype: str) -> None:
    """Raises an error if a model does not fit.

    Args:
        needed: int, bytes as of `needed_bytes`.
        device: module of a backend in this folder.
        dtype: str, of the model.

    Raises:
        RuntimeError: the device or the machine has less memory.
    """
    found = free_bytes() if device.is_cpu() else device.free_bytes()
    if found is None or found >= needed:
        return
    smaller = "" if ITEM_BYTES[dtype] == 2 else " Pass --dtype bfloat16, which needs half of it, or"
    raise RuntimeError(
        f"The model needs about {needed / 1e9:.1f} GB in {dtype}, one implementation after the "
        f"other, and {device.device_name()} has {found / 1e9:.1f} GB free.{smaller} "
        f"{'use' if smaller else 'Use'} a machine with more memory. With --no-memory-check it is "
        "tried all the same."
    )
