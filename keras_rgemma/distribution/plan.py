"""Plans a task before there is a device for it: the work of `keras_rgemma.plan`."""

from __future__ import annotations

import dataclasses
from typing import Any

from keras_rgemma.checkpoints.folder import open_checkpoint
from keras_rgemma.checkpoints.hub import CONFIG
from keras_rgemma.checkpoints.presets import resolve_model
from keras_rgemma.config import RGemmaConfig
from keras_rgemma.distribution.compiling import check_installed, compile_job
from keras_rgemma.distribution.devices import device_named
from keras_rgemma.distribution.report import Plan, Program, advice, read_program
from keras_rgemma.distribution.search import largest_batch, largest_length
from keras_rgemma.distribution.settings import read_settings
from keras_rgemma.generation.programs import chunk_sizes
from keras_rgemma.keras_internals.presets import preset_config


def plan(
    preset: str,
    device: str,
    task: str = "generate",
    *,
    length: int = 2048,
    batch: int = 1,
    mesh: tuple[int, int] | str | None = None,
    fully_sharded: bool | None = None,
    dtype: str | None = None,
    quantize: str | None = None,
    rank: int | None = None,
    optimizer: str | None = None,
    gradient_checkpointing: bool = True,
    search: bool = True,
    cache: bool = True,
    progress: bool = True,
) -> Plan:
    """Compiles a task for a device that need not be there, and says what it needs.

    The programs are those that the task runs on JAX, and the compiler is the device's own. No
    weights are loaded. Compiling takes seconds to minutes a program; what was compiled is kept in
    a cache. Each program is compiled in a process of its own, so this works on every backend.

    Args:
        preset: str, a preset, folder or handle, as of `RGemmaCausalLM.from_preset`. Only its
            config is read.
        device: str: "v5e-1", "v5e-4", "v5e-8", "v5e-16", "v6e-1", "v6e-8", "v4" and "v5p" (a host
            of four chips), "T4", "2xT4", "L4", "A100" (40 GB), "H100" or "8xH100".
        task: str: "generate", "lora", "qlora" (LoRA on rounded weights) or "train" (all weights).
        length: int, tokens of a row; of "generate", of the prompt.
        batch: int, rows of all chips together.
        mesh: pair of ints or str such as "1x8", chips along the rows and along the weights; None
            chooses. See `RGemmaBackbone.get_layout_map`.
        fully_sharded: bool, whether weights are divided along the rows, too; None chooses.
        dtype: str, of the model; None for bfloat16, or float16 on a T4.
        quantize: "int4" (the default of "qlora") or "int8"; for "generate", too.
        rank: int, of LoRA on every linear layer; None for 8.
        optimizer: str: "adamw" (`finetuning.AdamW`, the default), "adam", "sgd", "adafactor",
            "lion" or "rmsprop".
        gradient_checkpointing: bool, whether training recomputes layers.
        search: bool, whether the largest length and batch that fit are looked for: one program
            more is compiled for a line through two, and one to see that its end fits.
        cache: bool, whether programs that were compiled before are looked up.
        progress: bool, whether each program is named on standard error while it compiles.

    Returns:
        `Plan`, with attributes such as `fits`, `programs`, `largest_batch` and `advice`. `print`
        it, or take `to_dict()`.

    Raises:
        ValueError: an argument is none of those that there are, or a mesh does not fit.
        ImportError: the compiler of the device is not installed; the message says what to install.
        RuntimeError: the compiler failed.

    Example:
    ```python
    plan = keras_rgemma.plan("rgemma_2b_en", "v5e-1", task="lora", length=8192)
    print(plan)
    ```
    """
    config = RGemmaConfig(**_architecture(preset))
    count = config.parameter_count
    settings = read_settings(
        config.to_dict(),
        count,
        device,
        task,
        length,
        batch,
        mesh=mesh,
        fully_sharded=fully_sharded,
        dtype=dtype,
        quantize=quantize,
        rank=rank,
        optimizer=optimizer,
        gradient_checkpointing=gradient_checkpointing,
    )
    check_installed(device_named(device).platform)

    def compiled(program: str, rows: int, tokens: int) -> Program:
        job = {**settings.to_dict(), "program": program, "rows": rows, "tokens": tokens}
        return read_program(job, compile_job(job, cache, progress), count)

    memory, longest, most, is_sure = device_named(device).memory, None, None, False
    if task == "generate":
        chunk = next(chunk_sizes(length, is_one_size=True))
        programs = [compiled("decode", batch, 1), compiled("prefill", batch, chunk)]
        if search:
            most, is_sure = largest_batch(settings, memory, programs[1], compiled)
    else:
        programs = [compiled("train", batch, length)]
        if search:
            found = largest_length(settings, memory, programs[0], compiled)
            longest, most, is_sure = found
    return Plan(
        preset=str(preset),
        settings=settings.to_dict(),
        memory_bytes=memory,
        programs=programs,
        fits=all(program.fits for program in programs),
        largest_length=longest,
        largest_batch=most,
        is_verified=is_sure,
        advice=advice(settings, programs, longest, most),
    )


def _architecture(preset: str) -> dict[str, Any]:
    """Reads the fields of `RGemmaConfig` of a preset, a dict."""
    folder, _ = resolve_model(preset, CONFIG)
    checkpoint = open_checkpoint(folder)
    found = checkpoint.config.to_dict() if checkpoint else preset_config(folder)["config"]
    names = {field.name for field in dataclasses.fields(RGemmaConfig)}
    return {name: value for name, value in found.items() if name in names}
