"""Checks what a plan is asked for, and chooses what it was not told."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from keras_rgemma.choices import DTYPES, PLAN_DTYPES, PLAN_OPTIMIZERS, PLAN_TASKS
from keras_rgemma.config import check_count
from keras_rgemma.distribution.devices import Device, device_named

ROUNDED = (None, "int8", "int4")
_BITS = {None: 16, "int8": 8, "int4": 4.25}
# The share of a chip's memory that weights may take before they are divided further.
_WEIGHTS_SHARE = 0.4


@dataclasses.dataclass(frozen=True)
class Settings:
    """Holds what the programs of a plan follow from.

    Attributes:
        config: dict of the fields of `RGemmaConfig`.
        device: str of `devices.DEVICES`.
        task: str of `choices.PLAN_TASKS`.
        length, batch: ints, tokens of a row and rows of all chips together.
        mesh: pair of ints, chips along "batch" and "model".
        fully_sharded: bool.
        dtype: str, a dtype policy.
        quantize: "int8", "int4" or None.
        rank: int, of LoRA, or None.
        optimizer: str of `choices.PLAN_OPTIMIZERS`, or None.
        gradient_checkpointing: bool.
    """

    config: dict[str, Any]
    device: str
    task: str
    length: int
    batch: int
    mesh: tuple[int, int]
    fully_sharded: bool
    dtype: str
    quantize: str | None
    rank: int | None
    optimizer: str | None
    gradient_checkpointing: bool

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as a dict that JSON can hold."""
        return {**dataclasses.asdict(self), "mesh": list(self.mesh)}


def read_settings(
    config: dict[str, Any],
    parameter_count: int,
    device: str,
    task: str,
    length: int,
    batch: int,
    *,
    mesh: Sequence[int] | str | None = None,
    fully_sharded: bool | None = None,
    dtype: str | None = None,
    quantize: str | None = None,
    rank: int | None = None,
    optimizer: str | None = None,
    gradient_checkpointing: bool = True,
) -> Settings:
    """Checks the arguments of `plan`, and replaces each None.

    Args:
        config: dict of the fields of `RGemmaConfig`.
        parameter_count: int, of the model.
        device, task, length, batch, mesh, fully_sharded, dtype, quantize, rank, optimizer,
            gradient_checkpointing: see `plan`.

    Returns:
        `Settings`.

    Raises:
        ValueError: a value is none of those that there are, or a mesh does not fit.
    """
    chips = device_named(device)
    _check_choice("task", task, PLAN_TASKS)
    length, batch = check_count("length", length), check_count("batch", batch)
    _check_choice("dtype", dtype, (None, *PLAN_DTYPES))
    _check_choice("quantize", quantize, ROUNDED)
    _check_choice("optimizer", optimizer, (None, *PLAN_OPTIMIZERS))
    has_lora, trains = task in ("lora", "qlora"), task != "generate"
    if task == "qlora":
        quantize = quantize or "int4"
    elif quantize and trains:
        raise ValueError(
            f"Rounded weights are trained with task='qlora'. Received: task={task!r} with "
            f"quantize={quantize!r}."
        )
    for name, value, is_for in (("rank", rank, has_lora), ("optimizer", optimizer, trains)):
        if value is not None and not is_for:
            raise ValueError(
                f"`{name}` has no meaning for task={task!r}. Received: {value!r}. Leave it out."
            )
    if has_lora:
        rank = check_count("rank", 8 if rank is None else rank)
    dtype = dtype or chips.dtype
    if dtype == "bfloat16" and chips.dtype == "float16":
        raise ValueError(
            f"A {device} has no bfloat16. Received: dtype={dtype!r}. Pass dtype='float16'."
        )
    weights = parameter_count * _BITS[quantize] / 8 * (2 if dtype not in DTYPES[1:] else 1)
    if task == "train":
        weights *= 4  # gradients and the two slots of Adam
    if mesh is None:
        mesh, chosen = _mesh(config, chips, batch, weights, trains)
        fully_sharded = chosen if fully_sharded is None else fully_sharded
    mesh = _check_mesh(mesh, device, chips.chips, batch, trains)
    return Settings(
        config=config,
        device=device,
        task=task,
        length=length,
        batch=batch,
        mesh=mesh,
        fully_sharded=bool(fully_sharded) and mesh[0] > 1,
        dtype=dtype,
        quantize=quantize,
        rank=rank,
        optimizer=(optimizer or "adamw") if trains else None,
        gradient_checkpointing=bool(gradient_checkpointing) and trains,
    )


def _check_choice(name: str, value: object, choices: Sequence[Any]) -> None:
    if value not in choices:
        choices = [choice for choice in choices if choice is not None]
        raise ValueError(f"`{name}` must be one of {choices}. Received: {name}={value!r}.")


def _mesh(
    config: Mapping[str, Any], device: Device, batch: int, weights: float, trains: bool
) -> tuple[tuple[int, int], bool]:
    """Chooses a mesh, and whether weights are fully sharded.

    Training divides rows as far as there are rows, and then weights along the rows, which moves
    less than sums of activations; generation divides weights until they fit.
    """
    sizes = [config["vocabulary_size"], config["intermediate_dim"], _width(config)]
    sizes.append(config["num_query_heads"] * _head(config))
    common = math.gcd(*sizes)
    shapes = [
        (device.chips // n, n)
        for n in range(1, device.chips + 1)
        if device.chips % n == 0 and common % n == 0 and batch % (device.chips // n) == 0
    ]
    if not shapes:  # `_check_mesh` says why
        return (1, device.chips), False
    limit = _WEIGHTS_SHARE * device.memory
    if trains:
        shape = shapes[0]
        return shape, shape[0] > 1 and weights / shape[1] > limit
    fitting = [shape for shape in shapes if weights / shape[1] <= limit]
    return (fitting or shapes[-1:])[0], False


def _width(config: Mapping[str, Any]) -> int:
    return config.get("lru_dim") or config["hidden_dim"]


def _head(config: Mapping[str, Any]) -> int:
    return config.get("head_dim") or config["hidden_dim"] // config["num_query_heads"]


def _check_mesh(
    mesh: Sequence[int] | str, device: str, chips: int, batch: int, trains: bool
) -> tuple[int, int]:
    """Reads a mesh, a pair of ints or a str such as "1x8"."""
    try:
        parts = mesh.lower().split("x") if isinstance(mesh, str) else mesh
        data, model = map(int, parts)
    except (TypeError, ValueError):
        data = model = 0
    if data < 1 or model < 1:
        raise ValueError(
            f"A mesh is two whole numbers, chips along 'batch' and along 'model', such as '1x8'. "
            f"Received: {mesh!r}."
        )
    if data * model != chips:
        raise ValueError(
            f"{device!r} has {chips} chips, but the mesh {data}x{model} has {data * model}. Choose "
            f"one of {[f'{n}x{chips // n}' for n in range(1, chips + 1) if chips % n == 0]}."
        )
    if trains and batch % data:
        raise ValueError(
            f"The mesh {data}x{model} divides rows into {data} parts, which do not divide a batch "
            f"of {batch}. Make the batch a multiple of {data}, or the first number of the mesh "
            "smaller."
        )
    return data, model
