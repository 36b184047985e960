"""Reports what programs need of a device, and how fast they can be at best."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from keras_rgemma.distribution.devices import DEVICES, device_named
from keras_rgemma.distribution.settings import Settings

# What a chip sends for a collective of `n` chips, in units of the bytes of its result.
_SENT = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,
    "collective-permute": lambda n: 1,
    "collective-broadcast": lambda n: 1,
}
_LISTED = 6  # collectives in a report


@dataclasses.dataclass(frozen=True)
class Program:
    """Describes one compiled program, on each chip.

    Attributes:
        name: str, "prefill", "decode" or "train".
        rows, tokens: ints, rows of all chips, and tokens of each row in one call.
        weight_bytes, optimizer_bytes, state_bytes: ints.
        temporary_bytes: int, all else: activations, results, code, padding; None if the compiler
            did not say.
        total_bytes: int; None if the compiler did not say.
        fits: bool, whether the compiler takes the program and the chip has the memory.
        flops: float, products and sums that are counted in the program, or that the model needs,
            whichever is more; what is inside of a loop counts once.
        bytes_accessed: float, by the compiler's count, that in faster memory included; or None.
        least_bytes: int, that are read and written at least: arguments and results.
        sent_bytes: float, that a chip sends to others.
        collectives: list of dicts: `kind`, `arrays`, `devices`, `nbytes` of one, `count`.
        trace_s, compile_s: floats, seconds.
        host_bytes: int, the peak of memory of the process that compiled.
        tokens_per_second: float, the bound of all chips together; None if the program does not fit.
        limit: str, what the bound follows from: "compute", "memory" or "links".

    Example:
    ```python
    plan = keras_rgemma.plan("rgemma_2b_en", "v5e-1")
    decode, prefill = plan.programs
    decode.total_bytes, prefill.tokens_per_second
    ```
    """

    name: str
    rows: int
    tokens: int
    weight_bytes: int
    optimizer_bytes: int
    state_bytes: int
    temporary_bytes: int | None
    total_bytes: int | None
    fits: bool
    flops: float
    bytes_accessed: float | None
    least_bytes: int
    sent_bytes: float
    collectives: list[dict[str, Any]]
    trace_s: float | None
    compile_s: float | None
    host_bytes: int
    tokens_per_second: float | None
    limit: str | None


def read_program(job: Mapping[str, Any], facts: Mapping[str, Any], parameter_count: int) -> Program:
    """Makes the `Program` of a job and of what `worker.run` found."""
    device = device_named(job["device"])
    rows, tokens = job["rows"], job["tokens"]
    names = ("weight_bytes", "optimizer_bytes", "state_bytes", "host_bytes")
    known = {name: facts[name] for name in names}
    if job["program"] == "train":
        known["state_bytes"] = 0
    held = known["weight_bytes"] + known["optimizer_bytes"] + known["state_bytes"]
    least, total = held, facts.get("needed_bytes") or None
    if "argument_bytes" in facts:
        least = facts["argument_bytes"] + facts["output_bytes"]
        total = least - facts["alias_bytes"] + facts["temporary_bytes"] + facts["code_bytes"]
    listed = facts.get("collectives", [])
    sent = sum(x["count"] * x["nbytes"] * _sent(x["kind"], x["devices"]) for x in listed)
    flops = max(facts.get("flops") or 0, _model_flops(job, parameter_count) / device.chips)
    seconds = {
        "compute": flops / device.flops,
        "memory": least / device.bandwidth,
        "links": sent / device.link,
    }
    fits = facts["fits"] and total <= device.memory
    limit = max(seconds, key=seconds.get)
    written = rows * (1 if job["program"] == "decode" else tokens)
    return Program(
        name=job["program"],
        rows=rows,
        tokens=tokens,
        **known,
        temporary_bytes=None if total is None else max(0, total - held),
        total_bytes=total,
        fits=fits,
        flops=flops,
        bytes_accessed=facts.get("bytes_accessed"),
        least_bytes=least,
        sent_bytes=sent,
        collectives=listed,
        trace_s=facts.get("trace_s"),
        compile_s=facts.get("compile_s"),
        tokens_per_second=written / seconds[limit] if fits else None,
        limit=limit if fits else None,
    )


def _sent(kind: str, devices: int | None) -> float:
    n = devices or 2
    return _SENT.get(kind, lambda n: (n - 1) / n)(n)


def _model_flops(job: Mapping[str, Any], parameter_count: int) -> int:
    """Counts two operations a weight and token in each product that a program cannot do without."""
    config = job["config"]
    head = config["vocabulary_size"] * config["hidden_dim"]
    if job["program"] == "prefill":  # makes no logits
        return 2 * (parameter_count - head) * job["rows"] * job["tokens"]
    if job["program"] == "decode":
        return 2 * parameter_count * job["rows"]
    # Frozen weights have no gradients.
    return (4 if job["rank"] else 6) * parameter_count * job["rows"] * job["tokens"]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Says whether a model runs on a device, by the device's own compiler. Print it.

    Attributes:
        preset: str.
        settings: dict: device, task, length, batch, mesh and so on.
        memory_bytes: int, of a chip.
        programs: list of `Program`: of "generate" prefill and decode, else a training step.
        fits: bool, whether all programs do.
        largest_length: int, the most tokens of a row that fit with this batch; None if unknown,
            and for "generate", whose memory does not depend on it.
        largest_batch: int, the most rows that fit with this length; None if unknown.
        is_verified: bool, whether the largest length, of "generate" the largest batch, was compiled
            and fits. The largest batch of the other tasks is from the line of the lengths.
        advice: list of str, what to change if it does not fit.

    Example:
    ```python
    plan = keras_rgemma.plan("rgemma_2b_en", "v5e-1", task="lora", length=8192)
    plan.fits, plan.largest_length, plan.advice
    ```
    """

    preset: str
    settings: dict[str, Any]
    memory_bytes: int
    programs: list[Program]
    fits: bool
    largest_length: int | None
    largest_batch: int | None
    is_verified: bool
    advice: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Returns all that is known as a dict that JSON can hold.

        Example:
        ```python
        plan = keras_rgemma.plan("rgemma_2b_en", "v5e-1")
        json.dumps(plan.to_dict())
        ```
        """
        settings = {name: x for name, x in self.settings.items() if name != "config"}
        return {**dataclasses.asdict(self), "settings": settings}

    def __str__(self) -> str:
        return "\n".join([*_title(self), *map(_program, self.programs), *_result(self)])


def _title(plan: Plan) -> list[str]:
    x = plan.settings
    device = device_named(x["device"])
    words = [f"{x['batch']} x {x['length']} tokens", x["dtype"]]
    words += [f"rounded to {x['quantize']}"] if x["quantize"] else []
    words += [f"LoRA of rank {x['rank']}"] if x["rank"] else []
    words += [x["optimizer"]] if x["optimizer"] else []
    words += ["layers recomputed"] if x["gradient_checkpointing"] else []
    if device.chips > 1:
        words.append(f"mesh {x['mesh'][0]} x {x['mesh'][1]} (batch x model)")
        words += ["weights fully sharded"] if x["fully_sharded"] else []
    return [f"{plan.preset} on {x['device']}: {x['task']}", ", ".join(words)]


def _program(program: Program) -> str:
    names = ("weight", "optimizer", "state", "temporary")
    sizes = {name: getattr(program, f"{name}_bytes") for name in names}
    parts = [f"{_names[name]} {_gb(size)}" for name, size in sizes.items() if size]
    lines = [f"\n{program.name}, {program.rows} x {program.tokens}"]
    if program.trace_s is not None:
        lines[0] += f", compiled in {program.trace_s + program.compile_s:.0f} s"
    lines.append(f"  bytes a chip    {', '.join(parts)}")
    lines.append(f"  total           {_gb(program.total_bytes)}")
    if program.trace_s is None:
        lines[-1] += ", which the compiler refuses"
        return "\n".join(lines)
    if program.bytes_accessed:
        moved = f", {_gb(program.bytes_accessed)} moved by the compiler's count"
    else:
        moved = ""
    least = f"{_gb(program.least_bytes)} read and written at least"
    lines.append(f"  work a chip     {program.flops / 1e12:.3g} Tflop, {least}{moved}")
    if program.collectives:
        lines.append(f"  a chip sends    {_gb(program.sent_bytes)}; collectives:")
    for x in program.collectives[:_LISTED]:
        nbytes = f"{x['count'] * x['nbytes']:,} bytes"
        arrays = x["arrays"] if len(x["arrays"]) < 60 else x["arrays"][:57] + "..."
        lines.append(f"    {x['count']} x {x['kind']} of {arrays} among {x['devices']}: {nbytes}")
    if len(program.collectives) > _LISTED:
        rest = program.collectives[_LISTED:]
        nbytes = sum(x["count"] * x["nbytes"] for x in rest)
        lines.append(f"    {sum(x['count'] for x in rest)} others: {nbytes:,} bytes")
    if program.tokens_per_second:
        rate = f"{program.tokens_per_second:,.0f} tokens/s on all chips, by {program.limit}"
        lines.append(f"  at best         {rate}")
    return "\n".join(lines)


_names = {"weight": "weights", "optimizer": "optimizer", "state": "state", "temporary": "others"}


def _result(plan: Plan) -> list[str]:
    x = plan.settings
    total = max(p.total_bytes or 0 for p in plan.programs)
    verb = "It fits" if plan.fits else "It does not fit"
    lines = [f"\n{verb}: {_gb(total)} of {_gb(plan.memory_bytes)} a chip."]
    by_line = "by a line through two programs, not compiled"
    sure = "compiled" if plan.is_verified else by_line
    if plan.largest_length:
        lines.append(f"Longest rows at batch {x['batch']}: {plan.largest_length} ({sure}).")
    if plan.largest_batch:
        sure = sure if x["task"] == "generate" else by_line
        lines.append(f"Most rows of {x['length']} tokens: {plan.largest_batch} ({sure}).")
    if x["task"] == "generate":
        lines.append("Prompts and texts may have any length: the state does not grow with it.")
    return lines + [f"- {line}" for line in plan.advice]


def _gb(nbytes: float | None) -> str:
    if nbytes is None:
        return "unknown"
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e7 else f"{nbytes / 1e6:.3g} MB"


def advice(
    settings: Settings,
    programs: Sequence[Program],
    largest_length: int | None,
    largest_batch: int | None,
) -> list[str]:
    """Lists what to change if programs do not fit, the least first.

    Args:
        settings: `settings.Settings`.
        programs: list of `Program`.
        largest_length, largest_batch: ints or None, see `Plan`.

    Returns:
        A list of str.
    """
    if all(program.fits for program in programs):
        return []
    x, device = settings, device_named(settings.device)
    trains, lines = x.task != "generate", []
    if largest_batch and trains:
        steps = -(-x.batch // largest_batch)
        lines.append(
            f"Take --batch {largest_batch}; an optimizer with gradient_accumulation_steps={steps} "
            f"learns from {largest_batch * steps} rows a step all the same."
        )
    elif largest_batch:
        lines.append(f"Take --batch {largest_batch}.")
    if largest_length:
        lines.append(f"Take --length {largest_length}.")
    if trains and not x.gradient_checkpointing:
        lines.append("Recompute layers: leave --no-gradient-checkpointing out.")
    if x.dtype == "float32":
        lines.append(f"Take --dtype {device.dtype}: half of the memory.")
    if device.chips > 1 and trains and not x.fully_sharded and x.mesh[0] > 1:
        lines.append("Divide weights along the rows, too: --fully-sharded.")
    lines += {
        "generate": [] if x.quantize == "int4" else ["Round the weights: --quantize int4."],
        "lora": ["Round the frozen weights: --task qlora."],
        "train": ["Train less: --task lora has no slots for frozen weights."],
    }.get(x.task, [])
    needed = max(program.total_bytes or 0 for program in programs) * device.chips
    larger = [
        name
        for name, other in DEVICES.items()
        if other.platform == device.platform and other.chips * other.memory > needed
    ]
    if larger:
        name = min(larger, key=lambda name: DEVICES[name].chips * DEVICES[name].memory)
        lines.append(f"Take more memory: --device {name}.")
    return lines
